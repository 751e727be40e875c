"""``manifest.json`` describes an engine directory: the engine, its inputs and outputs, and the hash of every file.

Its last field is a digest of the manifest itself, so that a flipped byte in it is found like one in any other file. The
file ends in ``"sha256": "<64 hexadecimal digits>"``, a newline, ``}`` and a newline. The digits are the SHA-256 of the
file's bytes without those digits, which any language can recompute.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from calibration.preprocess import Preprocess
from rescompile.engine_files import open_plain
from rescompile.errors import EngineError
from rescompile.wording import shown

FORMAT = 2
"""Version of the engine directory; raised when a reader of the old version would misunderstand the new one.

Format 1 had one output, a classifier's logits, and the names of its classes in a field of their own.
"""

MOST_BYTES = 64 << 20
"""Limit on the size of a manifest: the names of a million classes fit."""

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""Signature of the manifest, if the engine is signed; the manifest itself does not list it."""
GRAPH = "model.onnx"
"""The deployable graph, from which the payload is built; often the payload itself for ONNX Runtime."""
REFERENCE = "reference.onnx"
"""The fp32 graph; absent after ``--no-reference``."""
CALIBRATION = "calibration.json"
"""The calibration table of an int8 engine."""
GOLDEN = "golden.npz"
"""Golden images and the logits that the engine must reproduce."""
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
README = "README.md"
"""The directory in words; absent in engines of versions up to 0.1."""
_BESIDE_THE_PAYLOAD = {GRAPH, REFERENCE, GOLDEN, CALIBRATION, REPORT_JSON, REPORT_HTML, README}
"""The files of an engine that its backend does not load, but for the graph of ONNX Runtime."""
TENSORRT_ENGINE = "model.engine"
OPENVINO_MODEL, OPENVINO_WEIGHTS = "model.xml", "model.bin"
ONNXRUNTIME_MODEL = "onnxruntime.onnx"
TRITON_PLAN, TRITON_WEIGHTS = "plan.json", "weights.safetensors"
MACHINE_CODE = ".cubin"
"""The payload by backend. Compiled Triton kernels (``*.cubin``) are named in the plan."""

_SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"\n\}\n\Z')
"""The end of every manifest. Inside a JSON string each quote has a backslash, so this always is the field."""

Precision = Literal["fp32", "fp16", "int8"]
CpuForm = Literal["avx2", "vnni", "amx"]
"""Kinds of CPU that INT8 engines for CPUs are built for; avx2 engines run on all of them."""
OutputKind = Literal["classes", "binary", "multilabel", "values", "features"]
"""Meaning of an output: logits of which the largest wins; one logit whose sign decides; logits that each decide for
themselves; numbers; an embedding or a feature map."""
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Batch sizes that the engine takes; it was tuned for ``opt``."""

    min: Count
    opt: Count
    max: Count

    def __str__(self) -> str:
        return str(self.opt) if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


class SizeRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Heights and widths that the engine takes; it was calibrated and tuned for the preprocessing's crop."""

    min: tuple[Count, Count]
    """The smallest height and width."""
    max: tuple[Count, Count]

    def holds(self, size: tuple[int, ...]) -> bool:
        """Whether ``size``, height and width, lies within the range."""
        return all(low <= side <= high for low, side, high in zip(self.min, size, self.max, strict=True))

    @property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """The smallest and the largest size, and the lowest and widest one."""
        return tuple(dict.fromkeys([self.min, self.max, (self.min[0], self.max[1])]))

    def __str__(self) -> str:
        return ":".join(f"{height}x{width}" for height, width in (self.min, self.max))


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output; the batch, height and width are -1 where the engine takes a range."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"]
    layout: Literal["NCHW", "NHWC", "NC"]

    @property
    def sides(self) -> slice:
        """Place of height and width in a shape of four dimensions."""
        return slice(1, 3) if self.layout == "NHWC" else slice(2, 4)

    @property
    def resizable(self) -> bool:
        """Whether height and width are open."""
        return len(self.shape) == 4 and list(self.shape)[self.sides] == [-1, -1]

    def of_size(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one image of this ``size``, height and width."""
        sides = list(self.shape)
        sides[self.sides] = size
        return tuple(sides[1:])

    def matches(self, shape: tuple[int, ...]) -> bool:
        """Whether arrays of this ``shape`` are images or outputs of these dimensions, any open ones aside."""
        return len(shape) == len(self.shape) and all(
            wanted in (-1, found) for wanted, found in zip(self.shape[1:], shape[1:], strict=True)
        )


class OutputSpec(TensorSpec, frozen=True, forbid_unknown_fields=True):
    """One output [N, C] or [N, C, H, W], and its meaning."""

    kind: OutputKind = "classes"
    labels: tuple[str, ...] = ()
    """A name for each class, label or value; the two decisions (no, yes) of a binary output; empty without names."""

    def fault(self) -> str | None:
        """A contradiction between the fields, as the end of a sentence; None where there is none."""
        fixed = self.shape[1:2] if self.resizable else self.shape[1:]
        if self.dtype != "float32" or len(self.shape) not in (2, 4) or min(fixed) < 1:
            return f"of {self.dtype} {list(self.shape)}, which is not float32 [N, C] or [N, C, H, W]"
        channels = self.shape[1]
        counts = {
            "classes": (channels,), "binary": (2,), "multilabel": (channels,), "values": (0, channels), "features": (0,)
        }[self.kind]  # fmt: skip
        if len(self.labels) not in counts:
            return f"of shape {list(self.shape)} and kind {self.kind}, with {len(self.labels)} names"
        row = len(self.shape) == 2
        if not (row or self.kind == "features") or (self.kind == "binary" and channels != 1):
            return f"of kind {self.kind} and shape {list(self.shape)}, which do not fit together"
        return None


class FileDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hash and size of one file of the directory."""

    sha256: Sha256
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class CheckpointRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Origin of the weights: ``source`` is a file name, ``pretrained`` or ``random``."""

    sha256: Sha256
    source: str


class CalibrationRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The calibration table in the directory, and the image set that it was made from."""

    sha256: Sha256
    source: str
    images: int
    method: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of ``manifest.json``."""

    format: int
    model: str
    depth: int | None
    precision: Precision
    backend: str
    target: str | None
    batch: Batch
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[OutputSpec, ...]
    preprocess: Preprocess
    checkpoint: CheckpointRef
    calibration: CalibrationRef | None
    golden_relative_rms: float
    files: dict[str, FileDigest]
    environment: dict[str, str]
    fp16_blocks: tuple[str, ...] = ()
    """Blocks of an int8 engine that are not quantized."""
    sizes: SizeRange | None = None
    """Sizes of images that the engine takes; None where there is one, which its shapes say."""
    cpu_form: CpuForm | None = None
    """None for engines that are not for CPUs or not in INT8, and for those of older versions, which are avx2."""
    sha256: str = ""

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the engine takes images [N, ...] of this ``shape``, whatever N is."""
        fed = self.inputs[0]
        return fed.matches(shape) and (self.sizes is None or self.sizes.holds(shape[fed.sides]))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the first output's classes, labels or values; empty if it has none."""
        return self.outputs[0].labels

    @property
    def payload_bytes(self) -> int:
        """Size of the files that the backend loads."""
        graph_runs = self.backend == "onnxruntime" and ONNXRUNTIME_MODEL not in self.files
        others = _BESIDE_THE_PAYLOAD - ({GRAPH} if graph_runs else set())
        return sum(digest.bytes for name, digest in self.files.items() if name not in others)

    def digest(self) -> str:
        """SHA-256 of the file that ``write`` writes, without the digest in it."""
        return hashlib.sha256(msgspec.structs.replace(self, sha256="")._text()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write ``manifest.json`` into ``directory``, with the digest filled in."""
        sealed = msgspec.structs.replace(self, sha256=self.digest())
        (directory / MANIFEST).write_bytes(sealed._text())

    def _text(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """Read and check ``manifest.json``: format version, field types, own digest and plain file names.

    Raises:
        EngineError: the directory or manifest is missing, of another format, or changed since the build.
    """
    return parse_manifest(manifest_text(directory), directory / MANIFEST)


def manifest_text(directory: Path, *, folder: int | None = None) -> bytes:
    """The contents of ``manifest.json``; ``folder`` is the descriptor of ``directory`` where it is open already.

    Raises:
        EngineError: the directory or manifest is missing or cannot be read.
    """
    path = directory / MANIFEST
    try:
        with open_plain(path, folder=folder) as stream:
            text = stream.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        where = (
            f"has no {MANIFEST}"
            if directory.is_dir()
            else "is a file"
            if directory.is_file()
            else "does not exist"
        )
        raise EngineError(
            f"{directory} is not an engine directory: it {where}; pass the --output of a build"
        ) from None
    except OSError as error:
        raise EngineError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    if len(text) > MOST_BYTES:
        raise EngineError(f"{path} has more than {MOST_BYTES:,} bytes; build the engine again")
    return text


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """The manifest with this ``text``, of the file ``path``; raises EngineError as ``read_manifest`` does."""
    try:
        found = msgspec.json.decode(text, type=_Version).format
        if not 1 <= found <= FORMAT:
            raise EngineError(
                f"{path} has format {found}, this rescompile reads formats 1 to {FORMAT}: "
                "build the engine again with this version, or install the version that built it"
            )
        if found == FORMAT:
            manifest = msgspec.json.decode(text, type=Manifest)
        else:
            manifest = msgspec.json.decode(text, type=_Format1).upgraded()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} is damaged ({error}); build the engine again or copy it again") from error
    if not _is_sealed(text):
        raise EngineError(
            f"{path} was changed after the build (its digest differs); build or copy the engine again"
        )
    manifest = _without_control(manifest)
    for name in manifest.files:
        if not name or any(sign in name for sign in "/\\\0") or name in {".", "..", MANIFEST}:
            raise EngineError(
                f"{path} lists a file {name!r} outside of its directory; do not use this engine"
            )
    return manifest


def _without_control(manifest: Manifest) -> Manifest:
    """``manifest`` with the control characters of its names written as text."""
    outputs = tuple(
        msgspec.structs.replace(
            output, name=shown(output.name), labels=tuple(shown(label) for label in output.labels)
        )
        for output in manifest.outputs
    )
    return msgspec.structs.replace(manifest, model=shown(manifest.model), outputs=outputs)


def _is_sealed(text: bytes) -> bool:
    """Whether ``text`` ends in the digest of the rest of it."""
    seal = _SEAL.search(text)
    if seal is None:
        return False
    rest = text[: seal.start(1)] + text[seal.end(1) :]
    return hashlib.sha256(rest).hexdigest().encode() == seal[1]


class _Version(msgspec.Struct):
    format: int


class _Format1(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The contents of ``manifest.json`` in format 1."""

    format: int
    model: str
    depth: int | None
    precision: Precision
    backend: str
    target: str | None
    batch: Batch
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec]
    preprocess: Preprocess
    classes: tuple[str, ...]
    checkpoint: CheckpointRef
    calibration: CalibrationRef | None
    golden_relative_rms: float
    files: dict[str, FileDigest]
    environment: dict[str, str]
    fp16_blocks: tuple[str, ...] = ()
    sha256: str = ""

    def upgraded(self) -> Manifest:
        """The same engine in the present format."""
        fields = msgspec.structs.asdict(self)
        (logits,), names = fields.pop("outputs"), fields.pop("classes")
        output = OutputSpec(**msgspec.structs.asdict(logits), labels=names)
        return Manifest(**fields | {"format": FORMAT, "outputs": (output,)})

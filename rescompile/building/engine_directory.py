"""The files of an engine directory, each written when its stage is done, and the manifest over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.images.builtin import golden_images
from calibration.memory import free_memory
from calibration.preprocess import normalize
from calibration.table import CalibrationTable
from rescompile.accuracy.limits import check_speed_limit
from rescompile.backends import choose_backend, get_backend
from rescompile.backends.base import Backend, BuildRequest, HasCpuForms, Payload, SelectiveBackend
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.block_check import IMAGES as CHECKED_IMAGES
from rescompile.building.block_check import check_blocks, compared_tensors
from rescompile.building.deployable import Deployable
from rescompile.building.source import Source
from rescompile.cache import cache_directory
from rescompile.config import BuildConfig, InputFormat
from rescompile.environment import describe
from rescompile.errors import BackendError, UsageError
from rescompile.files import atomic_write, sha256_of, writing
from rescompile.graph.image_sizes import for_sizes
from rescompile.manifest import (
    CALIBRATION,
    FORMAT,
    GOLDEN,
    GRAPH,
    MANIFEST,
    REFERENCE,
    SIGNATURE,
    CalibrationRef,
    FileDigest,
    Manifest,
    OutputSpec,
    Precision,
    TensorSpec,
    read_manifest,
)
from rescompile.metrics import relative_rms
from rescompile.progress import Progress
from rescompile.runtime.golden import golden_bytes
from rescompile.runtime.inputs import at_size

TIMING_CACHE = "tensorrt.timing"
"""In the cache directory: TensorRT's timings of kernels, which make later builds for the same GPU quicker."""
INPUT_TYPES: dict[InputFormat, tuple[Literal["float32", "uint8"], Literal["NCHW", "NHWC"]]] = {
    "float32-nchw": ("float32", "NCHW"),
    "uint8-nhwc": ("uint8", "NHWC"),
}
GOLDEN_IMAGES = 4
GOLDEN_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
"""Relative RMS between an engine's answers and the golden ones that is always allowed.

An INT8 engine may round a sum the other way than the reference does, wherever it computes in another order; such
a step of one then spreads. Measured figures are in ``docs/accuracy-notes.md``.
"""
MOST_GOLDEN_TOLERANCE = 0.5
"""Allowed at most, however much a network's own quantization error is; unrelated answers differ by 1.4."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The results of the stages that manifest and report describe."""

    source: Source
    config: BuildConfig
    backend: Backend
    payload: Payload
    table: CalibrationTable | None
    class_names: tuple[str, ...] | None
    """Names from the image set."""
    fp16_blocks: tuple[str, ...] = ()
    quantization_error: float = 0.0
    """Relative RMS of the deployable graph against fp32 on the golden images; of several outputs the largest."""

    @property
    def golden_tolerance(self) -> float:
        """Relative RMS that the engine may have on the golden images.

        In deep networks errors of one integer step spread, until two correct executions differ as much from each other
        as from fp32; so that difference is allowed. ``building.block_check`` finds wrong layers however large it is.
        """
        floor = GOLDEN_TOLERANCE[self.config.precision]
        return max(floor, min(self.quantization_error, MOST_GOLDEN_TOLERANCE))


def backend_for(config: BuildConfig) -> tuple[Backend, tuple[str, ...]]:
    """The backend that was asked for; for ``auto`` the best of this machine, and a note with the reason.

    Raises:
        UsageError: the target does not exist for the backend.
        BackendUnavailable: it cannot build here.
    """
    name, notes = config.backend, tuple[str, ...]()
    if name == "auto":
        name, reason = choose_backend()
        notes = (f"--backend auto chose {name}: {reason}",)
    backend = get_backend(name)
    check_speed_limit(config.limits, backend.name)
    backend.check(config.target)
    if config.cpu_form is not None:
        if not isinstance(backend, HasCpuForms):
            raise UsageError(
                f"--cpu-form {config.cpu_form} belongs to engines for CPUs, and this one is built by {name}; leave "
                "it out, or pass --backend openvino"
            )
        backend = backend.in_form(config.cpu_form)
    return backend, notes


def build_request(
    folder: Path, source: Source, config: BuildConfig, backend: Backend, progress: Progress
) -> BuildRequest:
    """The request to ``backend`` to build an engine of the graph in ``folder``.

    Raises:
        BackendError: the backend cannot build this network; the message gives all reasons.
    """
    graph = for_sizes(source.graph, config.model.sizes)
    if isinstance(backend, SelectiveBackend) and (reasons := backend.reasons_against(graph)):
        raise BackendError(
            f"the {backend.name} backend has no kernels for this {source.name}: {', '.join(reasons)}; pass --backend "
            "openvino or tensorrt-rtx"
        )
    image, sizes = _input(source, config), config.model.sizes
    return BuildRequest(
        model=folder / GRAPH,
        precision=config.precision,
        batch=config.batch,
        image_shape=_of_size(image, source.preprocess.size),
        bounds=None if sizes is None else (_of_size(image, sizes.min), _of_size(image, sizes.max)),
        target=config.target,
        timing_cache=cache_directory() / TIMING_CACHE,
        progress=progress.advanced,
    )


def _input(source: Source, config: BuildConfig) -> TensorSpec:
    """The engine's input, with -1 where it takes a range."""
    height, width = source.preprocess.size if config.model.sizes is None else (-1, -1)
    channels, low, high = source.preprocess.channels, config.batch.min, config.batch.max
    raw = config.input_format == "uint8-nhwc"
    shape = (height, width, channels) if raw else (channels, height, width)
    return TensorSpec("input", (low if low == high else -1, *shape), *INPUT_TYPES[config.input_format])


def _of_size(image: TensorSpec, size: tuple[int, int]) -> tuple[int, int, int]:
    first, second, third = image.of_size(size)
    return first, second, third


def write_graphs(
    folder: Path,
    source: Source,
    deployable: Deployable,
    table: CalibrationTable | None,
    config: BuildConfig,
) -> None:
    """Write the deployable graph, the fp32 reference and the calibration table.

    The stages work at one size of images; the graphs take all that the engine takes.
    """
    free_memory()  # of the rewrites; serializing takes three times the size of the graph
    atomic_write(folder / GRAPH, for_sizes(deployable.graph, config.model.sizes).SerializeToString())
    if config.keep_reference:
        atomic_write(folder / REFERENCE, for_sizes(source.graph, config.model.sizes).SerializeToString())
    if table is not None:
        table.write(folder / CALIBRATION)


def write_golden(folder: Path, contents: Contents, deployable: Deployable) -> Contents:
    """Write ``golden.npz``: a few images, and what the deployable graph answers to them.

    The blocks of the engine in ``folder`` are checked on the same images. Returns ``contents`` with the quantization
    error, which the engine's tolerance depends on.

    The images are crops of the built-in photographs, whatever the network is for, so that an engine does not need a
    user's image. The answers are ONNX Runtime's with optimizations off, which executes the graph as it is written.

    Raises:
        EngineError: a block computes something else than the deployable graph.
    """
    source, config = contents.source, contents.config
    images = golden_images(source.preprocess, count=GOLDEN_IMAGES)
    normalized = normalize(images, source.preprocess)
    inputs: NDArray[np.generic] = images if config.input_format == "uint8-nhwc" else normalized
    compared = compared_tensors(contents.backend, deployable.graph)
    values = _answers(deployable.graph, inputs, optimize=False, more=compared)
    free_memory()  # of the session
    outputs = [values[entry.name] for entry in deployable.graph.graph.output]
    other = None
    if config.model.sizes is not None:
        # one image of another shape, so that each load tries more than one
        resampled = at_size(inputs[:1], _input(source, config), config.model.sizes.ends[-1])
        other = (
            resampled,
            *_answers(for_sizes(deployable.graph, config.model.sizes), resampled, optimize=False).values(),
        )
    atomic_write(folder / GOLDEN, golden_bytes(inputs, *outputs, other=other))
    check_blocks(folder, contents.backend, deployable.graph, inputs, values)
    exact = _answers(source.graph, normalized, optimize=True).values()
    return replace(contents, quantization_error=max(map(relative_rms, exact, outputs)))


def _answers(
    graph: onnx.ModelProto, images: NDArray[np.generic], *, optimize: bool, more: Sequence[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Every output [N, ...], and the tensors ``more`` of the images whose blocks are checked, by name.

    Images are run one at a time, because an engine's batch does not bind its reference.
    """
    outputs = [entry.name for entry in graph.graph.output]
    names = list(dict.fromkeys([*outputs, *more]))
    session = reference_session(graph, optimize=optimize, outputs=names if more else None)
    answers = [
        session.tensors(image[None], names if index < CHECKED_IMAGES else outputs)
        for index, image in enumerate(images)
    ]
    return {
        name: np.concatenate([each[name] for each in answers if name in each]).astype(np.float32, copy=False)
        for name in names
    }


def clear(folder: Path) -> None:
    """Remove the files of an engine before another one is built in its place.

    New files could have the same names, and a library may still have the old ones mapped.
    """
    for path in folder.iterdir():
        path.unlink()


def write_manifest(folder: Path, contents: Contents) -> Manifest:
    """Write ``manifest.json`` over all files that are in ``folder`` now."""
    source, config, payload = contents.source, contents.config, contents.payload
    image_input = _input(source, config)
    manifest = Manifest(
        format=FORMAT,
        model=source.name,
        depth=source.depth,
        precision=config.precision,
        backend=contents.backend.name,
        target=payload.target,
        batch=config.batch,
        inputs=(image_input,),
        outputs=_outputs(source, config, image_input.shape[0], contents.class_names),
        preprocess=source.preprocess,
        checkpoint=source.checkpoint,
        calibration=_calibration_ref(contents.table),
        golden_relative_rms=contents.golden_tolerance,
        files={},
        environment=describe(),
        fp16_blocks=contents.fp16_blocks,
        sizes=config.model.sizes,
        cpu_form=payload.cpu_form,
    )
    return write_hashed_manifest(folder, manifest)


def write_hashed_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` with the hashes of all files that are in ``directory`` now, and return it.

    Raises:
        ValueError: ``directory`` holds something else than plain files.
        OutputError: the disk is full.
    """
    paths = sorted(path for path in directory.iterdir() if path.name not in {MANIFEST, SIGNATURE})
    strange = [path.name for path in paths if path.is_symlink() or not path.is_file()]
    if strange:
        raise ValueError(f"an engine directory holds plain files only, not '{strange[0]}'")
    files = {path.name: FileDigest(sha256_of(path), path.stat().st_size) for path in paths}
    with writing(directory):
        msgspec.structs.replace(manifest, files=files).write(directory)
    return read_manifest(directory)


def _calibration_ref(table: CalibrationTable | None) -> CalibrationRef | None:
    if table is None:
        return None
    method = table.method + (" of statistics in bfloat16" if table.half else "")
    return CalibrationRef(table.sha256, table.images.source, table.images.count, method)


def _outputs(
    source: Source, config: BuildConfig, batch: int, folders: tuple[str, ...] | None
) -> tuple[OutputSpec, ...]:
    """The outputs of the graph; names that the user or the images give are those of the first."""
    follow = _following_outputs(source.graph, config)
    first, *others = source.graph.graph.output
    named = [(first, source.kind, _names(source, folders))]
    for other, kind in zip(others, source.other_kinds, strict=True):
        count = other.type.tensor_type.shape.dim[1].dim_value
        plain = replace(source, kind=kind, class_count=count, class_names=None)
        named.append((other, kind, _names(plain, None)))
    specs = []
    for output, kind, names in named:
        shape = tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim[1:])
        layout: Literal["NC", "NCHW"] = "NCHW" if len(shape) == 3 else "NC"
        values = shape if len(shape) == 3 or output is not first else (source.class_count,)
        if output.name in follow:
            values = (values[0], -1, -1)
        specs.append(OutputSpec(output.name, (batch, *values), "float32", layout, kind, names))
    return tuple(specs)


def _following_outputs(graph: onnx.ModelProto, config: BuildConfig) -> set[str]:
    """Outputs [N, C, H, W] whose height and width follow from those of the images."""
    sizes = config.model.sizes
    if sizes is None or all(len(output.type.tensor_type.shape.dim) == 2 for output in graph.graph.output):
        return set()
    session = reference_session(for_sizes(graph, config.model.sizes), optimize=False)
    channels = graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    small, large = (
        session.tensors(np.zeros((1, channels, *size), np.float32)) for size in (sizes.min, sizes.max)
    )
    return {name for name in small if small[name].shape != large[name].shape}


def _names(source: Source, folders: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the output's classes: the user's or ImageNet's, else those of the image set, else numbers."""
    count, own = source.class_count, source.class_names
    if source.kind == "features":
        return ()
    if source.kind == "values":
        return own if own is not None and len(own) == count else ()
    classes = 2 if source.kind == "binary" else count
    for names in (own, folders if source.kind != "multilabel" else None):
        if names is not None and len(names) == classes:
            return names
    return ("no", "yes") if source.kind == "binary" else tuple(f"class {index}" for index in range(count))

"""``calibration.json``: the range of every observed tensor, every method's threshold, and where the numbers come from.

All thresholds are stored, so that another method can be chosen later without images. The table carries a digest of
itself (field ``sha256``) and is refused when it was edited, or belongs to another checkpoint or preprocessing.
Floats are written in their shortest form that reads back to the same bits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError, TableError
from calibration.images.image_set import ImageSet
from calibration.methods.thresholds import LOGIT, METHODS, check_method, parse_method
from calibration.preprocess import Preprocess
from calibration.scales import LEVELS, scale_of
from calibration.statistics.observers import Histogram
from calibration.version import VERSION

FORMAT = 2
"""Version of the file; raised when a reader of the old one would misunderstand the new one."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Magnitude = Annotated[float, msgspec.Meta(ge=0)]


class ImagesRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images behind a table: name of the set, how many were used, their fingerprint, and the seed of the choice."""

    source: str
    count: Annotated[int, msgspec.Meta(ge=0)]
    """0 in a table that version 0.1 imported from another tool."""
    fingerprint: Sha256
    seed: int


IN_HALF = "+bfloat16"
"""End of a table's ``version`` where the statistics come from the network in bfloat16."""


class TensorRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Range of one tensor, every method's threshold for it, and the one in use with its scale."""

    amax: Magnitude
    minimum: float
    maximum: float
    threshold: Magnitude
    scale: Annotated[float, msgspec.Meta(gt=0)]
    thresholds: dict[str, Magnitude]
    channel_means: bytes = b""
    """[C] float32, little-endian, means of the fp32 network's values; empty where no means were taken."""
    channel_factors: bytes = b""
    """[C] float32, little-endian: the tensor's channels are divided by these before they are quantized, and range and
    thresholds are those after the division. Empty where nothing is divided."""
    levels: Annotated[int, msgspec.Meta(gt=0)] = LEVELS
    """Steps from zero to the threshold: 127, or 255 where the tensor's zero is stored as -128."""

    def with_method(self, method: str) -> TensorRange:
        """The same range with the threshold of ``method`` in use."""
        threshold = self.thresholds[method]
        return msgspec.structs.replace(self, threshold=threshold, scale=scale_of(threshold, self.levels))


class CalibrationTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ranges and provenance; ``make_table`` and ``with_method`` fill in ``sha256``."""

    format: int
    method: str
    model: str
    checkpoint_sha256: Sha256
    images: ImagesRef
    preprocess: Preprocess
    version: str
    """Version of the arithmetic that made the numbers, ``calibration.version``; ends with ``IN_HALF`` where the
    statistics come from the network in bfloat16."""
    tensors: dict[str, TensorRange]
    weight_scales: dict[str, bytes] | msgspec.UnsetType = msgspec.UNSET
    """[O] float32, little-endian, by node: scales that the weights were trained for. Absent where none were."""
    first_moments: bytes = b""
    """[K + 1, K] float32, little-endian: covariance and mean of what the first convolution multiplies with an output
    channel's K weights, so that these can be rounded against it. Empty where they were not taken."""
    sha256: str = ""

    @property
    def half(self) -> bool:
        """Whether the statistics come from the network in bfloat16."""
        return self.version.endswith(IN_HALF)

    def digest(self) -> str:
        """SHA-256 of this table with its own ``sha256`` left empty."""
        return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(self, sha256=""))).hexdigest()

    def scales(self) -> dict[str, float]:
        """Scale of every tensor."""
        return {name: tensor.scale for name, tensor in self.tensors.items()}

    def levels(self) -> dict[str, int]:
        """Steps from zero to the threshold of every tensor."""
        return {name: tensor.levels for name, tensor in self.tensors.items()}

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Channel means [C] of the fp32 network, for the tensors whose means were taken."""
        return _arrays({name: tensor.channel_means for name, tensor in self.tensors.items()})

    def factors(self) -> dict[str, NDArray[np.float32]]:
        """Channel factors [C] of equalization, for the tensors that have any."""
        return _arrays({name: tensor.channel_factors for name, tensor in self.tensors.items()})

    def moments(self) -> NDArray[np.float32] | None:
        """``first_moments`` as a matrix, or None where it is empty.

        Raises:
            TableError: it does not have that form.
        """
        if not self.first_moments:
            return None
        values = np.frombuffer(self.first_moments, "<f4")
        width = round((np.sqrt(1 + 4 * values.size) - 1) / 2)
        if values.size != (width + 1) * width or not np.isfinite(values).all():
            raise TableError("the calibration table has damaged first_moments: calibrate again")
        return values.reshape(width + 1, width)

    def trained_weight_scales(self) -> dict[str, NDArray[np.float32]]:
        """``weight_scales`` as arrays.

        Raises:
            TableError: one is not a positive number.
        """
        if isinstance(self.weight_scales, msgspec.UnsetType):
            return {}
        found = _arrays(self.weight_scales)
        for name, scales in found.items():
            if not (np.isfinite(scales) & (scales > 0)).all():
                raise TableError(
                    f"the calibration table has damaged weight_scales of '{name}': fine-tune with --qat again"
                )
        return found

    def with_method(self, method: str) -> CalibrationTable:
        """The same table with the thresholds of ``method``; no images are needed.

        Raises:
            CalibrationError: no such method.
            TableError: its thresholds are not in the table (a percentage other than the ones stored).
        """
        check_method(method)
        if any(method not in tensor.thresholds for tensor in self.tensors.values()):
            stored = ", ".join(next(iter(self.tensors.values())).thresholds)
            raise TableError(
                f"the calibration table holds no thresholds for {method}, only {stored}: "
                "choose one of these, or calibrate again from the images"
            )
        tensors = {name: tensor.with_method(method) for name, tensor in self.tensors.items()}
        return _sealed(msgspec.structs.replace(self, method=method, tensors=tensors))

    def check(self, *, checkpoint_sha256: str, preprocess: Preprocess, tensors: Sequence[str]) -> None:
        """Refuse this table for anything but the checkpoint, preprocessing and tensors it was made for.

        Raises:
            TableError: one of them differs; the message says which, and both values.
        """
        remedy = "calibrate again, or pass the table that was made for this model"
        if self.checkpoint_sha256 != checkpoint_sha256:
            raise TableError(
                f"the calibration table belongs to another checkpoint: it was made for {self.model} with SHA-256 "
                f"{self.checkpoint_sha256[:12]}, this one has {checkpoint_sha256[:12]}; {remedy}"
            )
        difference = self.preprocess.difference(preprocess)
        if difference is not None:
            raise TableError(
                f"the calibration table was made with other preprocessing: {difference}; {remedy}"
            )
        missing = [name for name in tensors if name not in self.tensors]
        if missing:
            raise TableError(
                f"the calibration table has no range for tensor '{missing[0]}' ({len(missing)} of {len(tensors)} are "
                f"missing): it was made for another graph; {remedy}"
            )

    def write(self, path: Path) -> None:
        """Write the table to ``path``; the file appears whole or not at all.

        Raises:
            TableError: it cannot be written.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise TableError(
                f"the calibration table cannot be written to {path} ({error.strerror}): check the folder and its space"
            ) from error


def make_table(
    histograms: Mapping[str, Histogram],
    method: str,
    *,
    model: str,
    checkpoint_sha256: str,
    images: ImageSet,
    preprocess: Preprocess,
    logit: Mapping[str, float] | None = None,
    means: Mapping[str, NDArray[np.floating]] | None = None,
    factors: Mapping[str, NDArray[np.floating]] | None = None,
    levels: Mapping[str, int] | None = None,
    first: NDArray[np.floating] | None = None,
    half: bool = False,
) -> CalibrationTable:
    """Table of ``histograms`` with the thresholds of all methods; those of ``method`` are the chosen ones.

    ``logit`` holds the thresholds of that method, which needs more than histograms. ``means``, ``factors`` and
    ``levels`` (for tensors that do not have 127) go into ``TensorRange``, ``first`` into ``first_moments``; ``half``
    is kept in ``version``.

    Raises:
        CalibrationError: no such method, nothing observed, or a range too large for an 8-bit scale.
    """
    if not histograms:
        raise CalibrationError("nothing was observed: name at least one tensor to calibrate")
    check_method(method)
    if method == LOGIT and logit is None:
        raise CalibrationError("the method logit needs gradients: calibrate with --effort balanced or best")
    methods = METHODS if method == LOGIT else {**METHODS, method: parse_method(method)}
    tensors = {}
    for name, histogram in histograms.items():
        thresholds = {key: compute(histogram) for key, compute in methods.items()}
        if logit is not None:
            thresholds[LOGIT] = logit[name]
        steps = (levels or {}).get(name, LEVELS)
        try:
            scale = scale_of(thresholds[method], steps)
        except CalibrationError as error:
            raise CalibrationError(f"tensor '{name}': {error}") from None
        tensors[name] = TensorRange(
            amax=histogram.amax,
            minimum=histogram.minimum,
            maximum=histogram.maximum,
            threshold=thresholds[method],
            scale=scale,
            thresholds=thresholds,
            channel_means=b"" if means is None else _to_bytes(means[name]),
            channel_factors=b"" if factors is None else _to_bytes(factors[name]),
            levels=steps,
        )
    return _sealed(
        CalibrationTable(
            format=FORMAT,
            method=method,
            model=model,
            checkpoint_sha256=checkpoint_sha256,
            images=ImagesRef(images.source, len(images), images.fingerprint, images.seed),
            preprocess=preprocess,
            version=VERSION + (IN_HALF if half else ""),
            tensors=tensors,
            first_moments=b"" if first is None else _to_bytes(first),
        )
    )


def read_table(path: Path) -> CalibrationTable:
    """Read a calibration table.

    Raises:
        TableError: it is missing, not a calibration table, of another format, or changed since it was made.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path} cannot be read ({error.strerror}): pass a calibration.json") from None
    return parse_table(text, path)


def parse_table(text: bytes, path: Path) -> CalibrationTable:
    """The calibration table with this ``text``, of the file ``path``; raises TableError as ``read_table`` does."""
    try:
        found = msgspec.json.decode(text, type=_Version).format
        if found != FORMAT:
            raise TableError(
                f"{path} has format {found}, this version reads format {FORMAT}: calibrate again with this version"
            )
        table = msgspec.json.decode(text, type=CalibrationTable)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TableError(
            f"{path} is not a calibration table, or a damaged one ({error}): calibrate again"
        ) from None
    if table.sha256 != table.digest():
        raise TableError(f"{path} was changed after it was made (its digest differs): calibrate again")
    return table


class _Version(msgspec.Struct):
    format: int


def _to_bytes(array: NDArray[np.floating]) -> bytes:
    return np.asarray(array, "<f4").tobytes()


def _arrays(stored: Mapping[str, bytes]) -> dict[str, NDArray[np.float32]]:
    """Arrays of the tensors that have any."""
    return {name: np.frombuffer(content, "<f4") for name, content in stored.items() if content}


def _sealed(table: CalibrationTable) -> CalibrationTable:
    return msgspec.structs.replace(table, sha256=table.digest())

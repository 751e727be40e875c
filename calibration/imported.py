"""A calibration table from another tool's file, for a network of ours.

Tensors are matched by name, exactly. The table has one threshold for each tensor, its method says where that came
from, and its scales are rounded up to FP16 like all others, which leaves those of an exported table as they were.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from calibration.errors import CalibrationError, TableError
from calibration.exchange import Format, bytes_of, read_onnxruntime_table, read_tensorrt_cache
from calibration.names import text_of
from calibration.preprocess import Preprocess
from calibration.scales import LEVELS, scale_of
from calibration.table import FORMAT, CalibrationTable, ImagesRef, TensorRange
from calibration.version import VERSION

METHODS: dict[Format, str] = {"tensorrt": "tensorrt-cache", "onnxruntime": "onnxruntime-table"}
"""What an imported table says in ``method``; it is also the name of its one threshold."""

_SHOWN = 5  # names in a sentence


@dataclass(frozen=True)
class Foreign:
    """What another tool's file says."""

    path: Path
    source: Format
    sha256: str
    """Of the file."""
    amax: dict[str, float]
    """Largest magnitude by tensor, as it stands there: zero and NaN included."""


@dataclass(frozen=True)
class Imported:
    """A table made from another tool's file."""

    table: CalibrationTable
    rounded_up: tuple[str, ...]
    """Tensors whose scale in the file is no FP16 number, so that the table's is the next larger one."""
    unused: tuple[str, ...]
    """Tensors of the file that this network does not quantize."""


def read_foreign(path: Path, source: Format) -> Foreign:
    """Read another tool's file.

    Raises:
        TableError: it cannot be read, or is damaged.
    """
    if source == "tensorrt":
        amax = {name: scale * LEVELS for name, scale in read_tensorrt_cache(path).items()}
    else:
        amax = read_onnxruntime_table(path)
    return Foreign(path, source, hashlib.sha256(bytes_of(path)).hexdigest(), amax)


def import_table(
    foreign: Foreign,
    *,
    model: str,
    checkpoint_sha256: str,
    preprocess: Preprocess,
    tensors: Sequence[str],
) -> Imported:
    """Table of the scales in a file for ``tensors``, which are all that the network quantizes.

    The images behind the file are unknown: ``images`` names the file instead, and its fingerprint is the
    file's SHA-256. Checkpoint and preprocessing are those that the caller says the scales are for; nothing in
    the file could prove it.

    Raises:
        TableError: the file lacks a tensor (the message names those and what it has instead), or a scale of it is no
            positive number, or one that is too large for FP16.
    """
    path, amax, method = foreign.path, foreign.amax, METHODS[foreign.source]
    unused = tuple(name for name in amax if name not in tensors)
    _refuse_missing(path, [name for name in tensors if name not in amax], unused, len(tensors))
    ranges = {name: _range(path, name, amax[name], method) for name in tensors}
    table = CalibrationTable(
        format=FORMAT,
        method=method,
        model=model,
        checkpoint_sha256=checkpoint_sha256,
        images=ImagesRef(text_of(path.name), 0, foreign.sha256, 0),
        preprocess=preprocess,
        version=VERSION,
        tensors=ranges,
    )
    rounded_up = tuple(name for name, entry in ranges.items() if entry.scale * LEVELS != entry.threshold)
    return Imported(msgspec.structs.replace(table, sha256=table.digest()), rounded_up, unused)


def _range(path: Path, name: str, amax: float, method: str) -> TensorRange:
    if not (amax > 0 and math.isfinite(amax)):
        raise TableError(
            f"{path}: tensor '{name}' has the scale {amax / LEVELS:g}, which quantizes nothing: "
            "calibrate that network again with the tool that wrote the file"
        )
    try:
        scale = scale_of(amax)
    except CalibrationError as error:
        raise TableError(f"{path}: tensor '{name}': {error}") from None
    return TensorRange(
        amax=amax, minimum=-amax, maximum=amax, threshold=amax, scale=scale, thresholds={method: amax}
    )


def _refuse_missing(path: Path, missing: Sequence[str], unused: Sequence[str], wanted: int) -> None:
    if missing:
        raise TableError(
            f"{path} has no scale for {len(missing)} of the network's {wanted} quantized tensors ({_listed(missing)})"
            f"; of its own tensors the network quantizes all but {len(unused)} ({_listed(unused)}): calibrate the "
            "reference.onnx of an engine directory, whose tensors have the names that are matched"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "") or "none"

"""Scales to and from other tools' files: TensorRT's calibration cache and ONNX Runtime's calibration tables.

What goes out are the scales in use, as ``scale`` or as ``amax = 127 * scale``; both are exact in float32. What comes
in are the numbers of the file as they stand there; ``imported`` makes a table of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from calibration import onnxruntime_flatbuffers, onnxruntime_table, tensorrt_cache
from calibration.errors import TableError
from calibration.scales import LEVELS
from calibration.table import CalibrationTable

Format = Literal["tensorrt", "onnxruntime"]

_ENCODERS: dict[str, Callable[[Mapping[str, float]], bytes]] = {
    ".json": lambda ranges: onnxruntime_table.encode_json(ranges).encode(),
    ".cache": lambda ranges: onnxruntime_table.encode_lines(ranges).encode(),
    onnxruntime_flatbuffers.SUFFIX: onnxruntime_flatbuffers.encode,
}


def write_tensorrt_cache(
    table: CalibrationTable, path: Path, version_header: str = tensorrt_cache.HEADER
) -> None:
    """Write the scales of ``table`` as a TensorRT calibration cache; the file appears whole or not at all.

    Raises:
        TableError: no header, a table of an equalized network, or a file that cannot be written.
    """
    _write(path, tensorrt_cache.encode(_exportable(table), version_header).encode())


def write_onnxruntime_table(table: CalibrationTable, path: Path) -> None:
    """Write the ranges of ``table`` for ONNX Runtime: the ending .json, .cache or .flatbuffers chooses the form.

    Raises:
        TableError: another ending, a table of an equalized network, or a file that cannot be written.
    """
    encode = _ENCODERS.get(path.suffix)
    if encode is None:
        raise TableError(
            f"{path} has no ending that names a form of ONNX Runtime's tables: use .json, .cache or .flatbuffers"
        )
    _write(path, encode({name: scale * LEVELS for name, scale in _exportable(table).items()}))


def read_tensorrt_cache(path: Path) -> dict[str, float]:
    """Scale by tensor of a TensorRT calibration cache, as it stands there: zero and NaN included.

    Raises:
        TableError: the file cannot be read, or is no cache or a damaged one.
    """
    return _decoded(path, lambda data: tensorrt_cache.decode(data.decode()))


def read_onnxruntime_table(path: Path) -> dict[str, float]:
    """Largest magnitude by tensor of an ONNX Runtime calibration table in any of its forms, as it stands there.

    Raises:
        TableError: the file cannot be read, or is no table or a damaged one.
    """
    if path.suffix == onnxruntime_flatbuffers.SUFFIX:
        return _decoded(path, onnxruntime_flatbuffers.decode)

    def decode(data: bytes) -> dict[str, float]:
        text = data.decode()
        form = onnxruntime_table.decode_json if _is_json(text) else onnxruntime_table.decode_lines
        return form(text)

    return _decoded(path, decode)


def format_of(path: Path) -> Format:
    """The format of a file, by its ending or its first line.

    Raises:
        TableError: the file cannot be read, or begins like none of them.
    """
    if path.suffix == onnxruntime_flatbuffers.SUFFIX:
        return "onnxruntime"
    text = bytes_of(path).decode(errors="replace")
    line = text.split("\n", 1)[0].rstrip()
    if tensorrt_cache.is_header(line):
        return "tensorrt"
    if _is_json(text) or _is_number(line.rpartition(" ")[2]):
        return "onnxruntime"
    raise TableError(
        f"{path} begins like no calibration file that is known: TensorRT's begin with a line as "
        f"{tensorrt_cache.HEADER}, ONNX Runtime's are JSON, or lines of a tensor and a number"
    )


def bytes_of(path: Path) -> bytes:
    """Contents of a file that the user named.

    Raises:
        TableError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"{path} does not exist: pass a calibration cache or table") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read ({error.strerror}): pass a file") from None


def _exportable(table: CalibrationTable) -> dict[str, float]:
    """The scales of ``table``, which must hold for the network as it is in the checkpoint."""
    if any(getattr(tensor, "channel_factors", b"") for tensor in table.tensors.values()):
        raise TableError(
            "the calibration table belongs to an equalized network, and its scales are wrong for any other: "
            "export a table that was made with --effort fast"
        )
    if any(levels != LEVELS for levels in table.levels().values()):
        raise TableError(
            "the calibration table has tensors whose zero is stored as -128, and other tools would read their scales "
            "wrongly: export a table that was made with --no-full-range"
        )
    strange = [name for name in table.tensors if "\n" in name or "\r" in name]
    if strange:
        raise TableError(f"tensor {strange[0]!r} has a line break in its name: rename it in the ONNX graph")
    return table.scales()


def _decoded(path: Path, decode: Callable[[bytes], dict[str, float]]) -> dict[str, float]:
    data = bytes_of(path)
    try:
        return decode(data)
    except UnicodeDecodeError:
        raise TableError(
            f"{path} is no text: pass the file that the other tool's calibration wrote"
        ) from None
    except TableError as error:
        raise TableError(f"{path}: {error}") from None


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in {"{", "["}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TableError(
            f"{path} cannot be written ({error.strerror}): check the folder and its space"
        ) from error

"""TensorRT's calibration cache as text: a line for the calibrator, then one scale for each tensor.

    TRT-101300-EntropyCalibration2
    input: 3ca8f5c3

The eight hexadecimal digits are the bits of a float32, most significant first: scale = amax / 127.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from calibration.errors import TableError

HEADER = "TRT-101300-EntropyCalibration2"
"""TensorRT 10.13's, and the calibrator that its documentation recommends for networks of convolutions."""

_HEADER = re.compile(r"TRT-\d+-\w*Calibration\w*", re.ASCII)
_BITS = re.compile(r"[0-9a-fA-F]{8}")


def is_header(line: str) -> bool:
    """Whether ``line`` can be a cache's first one: ``TRT-<version>-<calibrator>``."""
    return _HEADER.fullmatch(line) is not None


def encode(scales: Mapping[str, float], header: str = HEADER) -> str:
    """The cache of ``scales``, in their order.

    Args:
        scales: scale by tensor, each a float32 number.
        header: the first line; TensorRT takes a cache only from its own version and the same calibrator.

    Raises:
        TableError: ``header`` is none.
    """
    if not is_header(header):
        raise TableError(
            f"'{header}' is no first line of a TensorRT calibration cache: write TRT-VERSION-CALIBRATOR, as {HEADER}"
        )
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join([header, *lines, ""])


def decode(text: str) -> dict[str, float]:
    """Scale by tensor, whatever its value: zero, negative numbers and NaN are the reader's to refuse.

    Raises:
        TableError: no header, a line that is no tensor with eight hexadecimal digits, or a tensor twice.
    """
    header, *lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not is_header(header):
        raise TableError(
            f"the first line is '{header[:60]}', a TensorRT calibration cache begins like {HEADER}: "
            "pass the file that a TensorRT calibrator wrote"
        )
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        name, colon, bits = line.rpartition(": ")
        if not colon or _BITS.fullmatch(bits) is None:
            raise TableError(
                f"line {number} is '{line[:60]}', not a tensor, a colon and eight hexadecimal digits: "
                "the file is damaged, write it again"
            )
        if name in scales:
            raise TableError(f"line {number} names tensor '{name}' a second time: remove one of the lines")
        (scales[name],) = struct.unpack(">f", bytes.fromhex(bits))
    return scales

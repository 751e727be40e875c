"""ONNX Runtime's calibration tables as text: the range [lowest, highest] of every tensor, in two forms.

JSON, of ``save_tensors_data`` (``quantize_static`` reads it back) or of ``write_calibration_table``:

    {"CLS": "TensorsData", "data": {"input": {"lowest": x, "highest": x, "CLS": "TensorData"}}, ...}
    {"input": {"lowest": x, "highest": x, "CLS": "TensorData"}}
    {"input": [x, x]}                                                   before ONNX Runtime 1.16

where x is a number, or one wrapped as ``{"data": number, "dtype": "float32", "CLS": "numpy.array"}``.
Lines, ``calibration.cache`` of ``write_calibration_table``: the tensor, a space and its largest value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from calibration.errors import TableError

_NOT_OURS = "pass the file that ONNX Runtime's calibration wrote"


def encode_json(ranges: Mapping[str, float]) -> str:
    """The table that ``onnxruntime.quantization.load_tensors_data`` reads, of symmetric ranges.

    Args:
        ranges: largest magnitude by tensor, each a float32 number.
    """
    data = {
        name: {"lowest": _wrapped(-amax), "highest": _wrapped(amax), "CLS": "TensorData"}
        for name, amax in ranges.items()
    }
    method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
    table = {"CLS": "TensorsData", "data": data, "calibration_method": method, "smooth_quant": False}
    return json.dumps(table, indent=1) + "\n"


def encode_lines(ranges: Mapping[str, float]) -> str:
    """The table as lines, tensors in alphabetical order; ``ranges`` as in ``encode_json``."""
    return "".join(f"{name} {ranges[name]!r}\n" for name in sorted(ranges))


def decode_json(text: str) -> dict[str, float]:
    """Largest magnitude by tensor, whatever its value: zero and NaN are the reader's to refuse.

    Raises:
        TableError: no JSON, another structure, a tensor twice, or a range for each channel.
    """
    try:
        table = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise TableError(f"it is no JSON, or half of it ({error}): {_NOT_OURS}") from None
    if isinstance(table, dict) and table.get("CLS") == "TensorsData":
        table = table.get("data")
    if isinstance(table, dict) and "checkpoint_sha256" in table:
        raise TableError(
            "it is a calibration.json of rescompile already: pass it to rescompile build --calibration"
        )
    if not isinstance(table, dict):
        raise TableError(f"it holds no ranges by tensor: {_NOT_OURS}")
    return {name: _magnitude(name, entry) for name, entry in table.items()}


def decode_lines(text: str) -> dict[str, float]:
    """Largest magnitude by tensor, as ``decode_json``.

    Raises:
        TableError: a line that is no tensor and number, or a tensor twice.
    """
    ranges: dict[str, float] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, _, value = line.rstrip().rpartition(" ")
        if name in ranges:
            raise TableError(f"line {number} names tensor '{name}' a second time: remove one of the lines")
        try:
            ranges[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise TableError(
                f"line {number} is '{line[:60]}', not a tensor, a space and a number: {_NOT_OURS}"
            )
    return ranges


def _wrapped(value: float) -> dict[str, Any]:
    return {"data": value, "dtype": "float32", "CLS": "numpy.array"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TableError(f"it names '{twice}' a second time: remove one of the entries")
    return made


def _magnitude(name: str, entry: object) -> float:
    """max(|lowest|, |highest|); NaN where one of them is."""
    if isinstance(entry, dict):
        ends = [entry.get("lowest"), entry.get("highest")]
    else:
        ends = entry if isinstance(entry, list) else []
    numbers = [_number(name, end) for end in ends]
    if len(numbers) != 2:
        raise TableError(f"it holds no lowest and highest value of tensor '{name}': {_NOT_OURS}")
    return math.nan if any(map(math.isnan, numbers)) else max(map(abs, numbers))


def _number(name: str, value: object) -> float:
    if isinstance(value, dict):
        value = value.get("data")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        raise TableError(
            f"tensor '{name}' has {len(value)} ranges, one for each channel, where TensorRT takes one for each "
            "activation: calibrate without per_channel"
        )
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TableError(f"it holds no lowest and highest value of tensor '{name}': {_NOT_OURS}")
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no end
        return math.inf

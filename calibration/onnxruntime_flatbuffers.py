"""ONNX Runtime's ``calibration.flatbuffers``, the table that its TensorRT execution provider reads.

A vector of (tensor, largest magnitude as decimal text). ONNX Runtime's own generated classes read and write it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from calibration.errors import TableError

SUFFIX = ".flatbuffers"

_DAMAGE = (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError)
"""What the generated classes, which check nothing, run into when offsets are wrong."""
_END = b"\xff"
"""Put behind the file: a string that was cut off runs into this byte, which is in no UTF-8 and no number."""


def encode(ranges: Mapping[str, float]) -> bytes:
    """The table of ``ranges`` (largest magnitude by tensor), tensors in alphabetical order."""
    import flatbuffers  # type: ignore[import-untyped]
    from onnxruntime.quantization.CalTableFlatBuffers import KeyValue, TrtTable

    builder = flatbuffers.Builder(1024)
    entries = []
    for name in sorted(ranges):
        key, value = builder.CreateString(name), builder.CreateString(repr(ranges[name]))
        KeyValue.KeyValueStart(builder)
        KeyValue.KeyValueAddKey(builder, key)
        KeyValue.KeyValueAddValue(builder, value)
        entries.append(KeyValue.KeyValueEnd(builder))
    TrtTable.TrtTableStartDictVector(builder, len(entries))
    for entry in reversed(entries):  # a vector is filled from its end
        builder.PrependUOffsetTRelative(entry)
    vector = builder.EndVector()
    TrtTable.TrtTableStart(builder)
    TrtTable.TrtTableAddDict(builder, vector)
    builder.Finish(TrtTable.TrtTableEnd(builder))
    return bytes(builder.Output())


def decode(data: bytes) -> dict[str, float]:
    """Largest magnitude by tensor, whatever its value: zero and NaN are the reader's to refuse.

    Raises:
        TableError: damaged, empty, or a tensor twice.
    """
    from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable

    ranges: dict[str, float] = {}
    try:
        table = TrtTable.GetRootAs(data + _END, 0)
        for index in range(table.DictLength()):
            entry = table.Dict(index)
            name, value = entry.Key().decode(), float(entry.Value())
            if not name:
                raise ValueError("cut off before its first letter")
            if name in ranges:
                raise TableError(f"it names tensor '{name}' a second time: remove one of the entries")
            ranges[name] = value
    except _DAMAGE:
        raise TableError("it is no calibration.flatbuffers, or a damaged one: write it again") from None
    if not ranges:
        raise TableError("it holds no tensor: write it again with ONNX Runtime's calibration")
    return ranges

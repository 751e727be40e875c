"""MXNet's checkpoints, a .params file of arrays and a -symbol.json of operations, read without MXNet.

The format of .params is that of MXNet's ``NDArray::Save``: a list's magic number, arrays (each with a magic number of
its own, a shape, a device, a type and values, little-endian), and their names, ``arg:`` or ``aux:`` in front.
"""

from __future__ import annotations

import json
import re
import struct
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.file_names import text_of
from rescompile.errors import CheckpointError, reason_of
from rescompile.files import sha256_of
from rescompile.manifest import CheckpointRef
from rescompile.sources.graph_writer import INPUT, GraphWriter
from rescompile.sources.network import SourceNetwork
from rescompile.wording import brief

_LIST = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = {0: "<f4", 1: "<f8", 2: "<f2"}
_EPSILON = 1e-3
"""MXNet's default of BatchNorm; Gluon writes its own, 1e-5, into the file."""
_OTHER_WAY = "export the network to ONNX with MXNet, and pass that"


def read_mxnet(path: Path, size: tuple[int, int] | None = None) -> SourceNetwork:
    """The network in a .params file and the -symbol.json beside it; ``size`` is the input's height and width.

    Raises:
        CheckpointError: a file is missing or cannot be read, or has an operation that rescompile does not know.
    """
    symbol_path = _symbol_of(path)
    try:
        arrays = read_params(path.read_bytes())
        nodes, heads = _symbol(json.loads(symbol_path.read_text("utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)}): check the path") from None
    except (ValueError, KeyError, TypeError, IndexError, struct.error, RecursionError) as error:
        raise CheckpointError(
            f"{path} or {symbol_path.name} is damaged ({brief(error)}): copy both again"
        ) from None
    if size is None:
        raise CheckpointError(f"{path} does not say the size of its images: pass --crop, such as --crop 224")
    converter = _Converter(path, nodes, arrays, size)
    outputs = converter.convert(heads)
    return SourceNetwork(
        graph=converter.writer.model(outputs, path),
        name=text_of(symbol_path.name.removesuffix("-symbol.json")),
        checkpoint=CheckpointRef(sha256_of(path), text_of(path.name)),
    )


def read_params(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The arrays of a .params file by their names, ``arg:`` and ``aux:`` left out.

    Raises:
        ValueError, struct.error: the file is damaged or of another kind.
    """
    reader = _Reader(data)
    if reader.take("Q") != _LIST:
        raise ValueError("it does not begin as MXNet's lists of arrays do")
    reader.take("Q")
    arrays = [reader.array() for _ in range(reader.count())]
    names = [reader.text() for _ in range(reader.count())]
    if len(names) != len(arrays):
        raise ValueError(f"it has {len(arrays)} arrays and {len(names)} names")
    return {
        name.removeprefix("arg:").removeprefix("aux:"): array
        for name, array in zip(names, arrays, strict=True)
    }


class _Reader:
    """Values taken from the front of a file; nothing is allocated beyond what the file holds."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, code: str) -> int:
        """One number."""
        value: int = struct.unpack_from(f"<{code}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{code}")
        return value

    def count(self) -> int:
        """A number of things of at least eight bytes."""
        count = self.take("Q")
        if count * 8 > len(self._data) - self._at:
            raise ValueError("it ends too early")
        return count

    def _bytes(self, length: int) -> memoryview:
        if length > len(self._data) - self._at:
            raise ValueError("it ends too early")
        self._at += length
        return self._data[self._at - length : self._at]

    def text(self) -> str:
        """A name behind its length."""
        return bytes(self._bytes(self.take("Q"))).decode("utf-8")

    def array(self) -> NDArray[np.float32]:
        """One dense array."""
        magic = self.take("I")
        if magic in (_V2, _V3) and self.take("i") not in (0, -1):
            raise ValueError("it holds a sparse array")
        known = magic in (_V1, _V2, _V3)
        axes = self.take("I") if known else magic  # the oldest files begin with the number of axes
        if axes > 8:
            raise ValueError(f"it holds an array of {axes} axes")
        shape = [self.take("q" if known else "I") for _ in range(axes)]
        self.take("i"), self.take("i")  # the device
        kind = self.take("i")
        if kind not in _TYPES or min(shape, default=1) < 0:
            raise ValueError(f"it holds an array of type {kind} and shape {shape}")
        dtype = np.dtype(_TYPES[kind])
        length = dtype.itemsize
        for side in shape:
            length *= side
        values = np.frombuffer(self._bytes(length), dtype).astype(np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are NaN or infinite")
        return values


def _symbol_of(path: Path) -> Path:
    """``resnet-symbol.json`` for ``resnet-0100.params``."""
    stem = re.sub(r"-\d{4}$", "", path.stem)
    symbol = path.with_name(f"{stem}-symbol.json")
    if not symbol.is_file():
        raise CheckpointError(
            f"{path} holds weights alone: put its {symbol.name}, which MXNet saves too, beside it"
        )
    return symbol


def _symbol(symbol: dict[str, Any]) -> tuple[list[dict[str, Any]], list[int]]:
    """The operations, each with its attributes parsed, and the numbers of those that are outputs.

    Raises:
        ValueError: it is not a symbol.
    """
    try:
        return _operations(symbol), [int(head[0]) for head in symbol["heads"]]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("the operations are not written as MXNet writes them") from None


def _operations(symbol: dict[str, Any]) -> list[dict[str, Any]]:
    nodes = []
    for entry in symbol["nodes"]:
        written = entry.get("attrs") or entry.get("attr") or entry.get("param") or {}
        attributes = {name: _parsed(value) for name, value in written.items()}
        inputs = [int(source[0]) for source in entry["inputs"]]
        nodes.append(
            {"op": str(entry["op"]), "name": str(entry["name"]), "inputs": inputs, "attrs": attributes}
        )
    return nodes


def _parsed(value: object) -> Any:
    """``"(3, 3)"``, ``"True"`` and ``"0.9"`` as Python's values; other texts stay."""
    try:
        return literal_eval(str(value))
    except (ValueError, SyntaxError, MemoryError):
        return value


class _Converter:
    """Writes the operations of a symbol into a graph."""

    def __init__(
        self, path: Path, nodes: list[dict[str, Any]], arrays: dict[str, NDArray[Any]], size: tuple[int, int]
    ) -> None:
        self.path = path
        self.nodes = nodes
        self.arrays = arrays
        try:
            first = next(node for node in nodes if node["op"] == "Convolution")
            _, inside, _, _ = arrays[nodes[first["inputs"][1]]["name"]].shape
            self.writer = GraphWriter((inside * int(first["attrs"].get("num_group", 1)), *size))
        except (StopIteration, LookupError, TypeError, ValueError):
            raise CheckpointError(
                f"{path} has no convolution: pass the files of an image classifier"
            ) from None

    def convert(self, heads: list[int]) -> list[str]:
        """Write all operations; the tensors of the ``heads`` are the outputs."""
        tensors: list[str | None] = []
        for node in self.nodes:
            if node["op"] == "null":
                is_input = node["name"] not in self.arrays and INPUT not in tensors
                tensors.append(INPUT if is_input else None)
                continue
            convert = _OPERATIONS.get(node["op"])
            if convert is None:
                raise CheckpointError(
                    f"{self.path} has an operation that rescompile does not know, '{brief(node['name'])}' "
                    f"({brief(node['op'])}): {_OTHER_WAY}"
                )
            try:
                inputs = [tensors[index] for index in node["inputs"]]
                weights = [
                    self.arrays[name]
                    for name in (self.nodes[index]["name"] for index in node["inputs"])
                    if name in self.arrays
                ]
                found = [tensor for tensor in inputs if tensor is not None]
                tensors.append(convert(self.writer, node["name"], node["attrs"], found, weights))
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
                raise CheckpointError(
                    f"{self.path}: the operation '{brief(node['name'])}' ({brief(node['op'])}) cannot be read "
                    f"({brief(error)}): {_OTHER_WAY}"
                ) from None
        outputs = [tensors[head] for head in heads if 0 <= head < len(tensors)]
        if not outputs or None in outputs:
            raise CheckpointError(f"{self.path} has no output: copy its files again")
        return [output for output in outputs if output is not None]


Attributes = dict[str, Any]
Operation = Callable[[GraphWriter, str, Attributes, list[str], list[NDArray[Any]]], str]


def _sides(attrs: Attributes, name: str, default: int) -> tuple[int, int]:
    value = attrs.get(name) or (default, default)
    return int(value[0]), int(value[1])


def _conv(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    weight, *bias = weights
    if attrs.get("layout") not in (None, "None", "NCHW"):
        raise ValueError(f"its layout is {attrs['layout']}")
    pads = _sides(attrs, "pad", 0)
    return writer.conv(
        x[0], name, weight, bias[0] if bias else None, strides=_sides(attrs, "stride", 1), pads=(*pads, *pads),
        dilations=_sides(attrs, "dilate", 1), groups=int(attrs.get("num_group", 1)),
    )  # fmt: skip


def _norm(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    scale, shift, mean, variance = weights
    if attrs.get("axis", 1) != 1:
        raise ValueError(f"its axis is {attrs['axis']}")
    # MXNet keeps a gamma that it does not use where fix_gamma is set, which is its default
    scale = np.ones_like(scale) if attrs.get("fix_gamma", True) else scale
    return writer.norm(x[0], name, scale, shift, mean, variance, float(attrs.get("eps", _EPSILON)))


def _pool(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    average = attrs.get("pool_type", "max") == "avg"
    if attrs.get("pool_type", "max") not in ("max", "avg"):
        raise ValueError(f"it pools by {attrs['pool_type']}")
    kind = "AveragePool" if average else "MaxPool"
    if attrs.get("global_pool"):
        return writer.global_pool(x[0], name, f"Global{kind}")
    kernel, strides, pads = _sides(attrs, "kernel", 1), _sides(attrs, "stride", 1), _sides(attrs, "pad", 0)
    ends = list(pads)
    if attrs.get("pooling_convention", "valid") == "full":
        rooms = [
            side + 2 * pad - length
            for side, pad, length in zip(writer.shapes[x[0]][1:], pads, kernel, strict=True)
        ]
        ends = [
            pad + -(-room // step) * step - room for pad, room, step in zip(pads, rooms, strides, strict=True)
        ]
        if average and any(ends):
            raise ValueError("its averages hang over the image")
    elif attrs.get("pooling_convention", "valid") != "valid":
        raise ValueError(f"its convention is {attrs['pooling_convention']}")
    if average and any(pads) and attrs.get("count_include_pad", True):
        padded = writer.pad(x[0], f"{name}.pad", (*pads, *ends))
        return writer.pool(padded, name, kind, kernel, strides, (0, 0, 0, 0))
    return writer.pool(x[0], name, kind, kernel, strides, (*pads, *ends))


def _linear(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    weight, *bias = weights
    flat = x[0] if len(writer.shapes[x[0]]) == 1 else writer.flatten(x[0], f"{name}.flatten")
    return writer.linear(flat, name, weight, bias[0] if bias else None)


def _flatten(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    return writer.flatten(x[0], name)


def _activation(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    operator = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus"}[
        attrs["act_type"]
    ]
    return writer.node(operator, [x[0]], name, writer.shapes[x[0]])


def _leaky(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    if attrs.get("act_type", "leaky") != "leaky":
        raise ValueError(f"its kind is {attrs['act_type']}")
    return writer.node("LeakyRelu", [x[0]], name, writer.shapes[x[0]], alpha=float(attrs.get("slope", 0.25)))


def _softmax(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    return writer.node("Softmax", [x[0]], name, writer.shapes[x[0]], axis=1)


def _concat(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    if attrs.get("dim", 1) != 1:
        raise ValueError(f"it joins axis {attrs['dim']}")
    return writer.concat(x, name)


def _same(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    return x[0]


def _join(operator: str) -> Operation:
    return lambda writer, name, attrs, x, weights: writer.join(operator, x, name)


def _relu(
    writer: GraphWriter, name: str, attrs: Attributes, x: list[str], weights: list[NDArray[Any]]
) -> str:
    return writer.node("Relu", [x[0]], name, writer.shapes[x[0]])


_OPERATIONS: dict[str, Operation] = {
    "Convolution": _conv,
    "BatchNorm": _norm,
    "Activation": _activation,
    "LeakyReLU": _leaky,
    "relu": _relu,
    "Pooling": _pool,
    "FullyConnected": _linear,
    "Flatten": _flatten,
    "flatten": _flatten,
    "SoftmaxOutput": _softmax,
    "softmax": _softmax,
    "Concat": _concat,
    **dict.fromkeys(
        ("elemwise_add", "_Plus", "_plus", "broadcast_add", "add_n", "ElementWiseSum"), _join("Add")
    ),
    **dict.fromkeys(("elemwise_mul", "broadcast_mul", "_mul", "_Mul"), _join("Mul")),
    **dict.fromkeys(("Dropout", "identity", "_copy", "BlockGrad"), _same),
}

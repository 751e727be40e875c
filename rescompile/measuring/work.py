"""Work of each block of a deployable graph: operations by type, and the bytes that it has to move.

Bytes are counted for fused kernels, as every engine has them: a weighted layer or pool reads its input and writes its
output once, in the type that the graph gives the tensor. ReLU, batch norm and quantizers move nothing of their own, and
an add behind a convolution only reads its skip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from calibration.onnx_session import without_weights
from rescompile.errors import GraphError
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import consumers, made_by
from rescompile.graph.shared.topology import block_outputs, ends_branch
from rescompile.report import BlockWork

if TYPE_CHECKING:
    import onnx

_POOLS = ("MaxPool", "GlobalAveragePool")
_BYTES = {1: 4, 10: 2, 2: 1, 3: 1}
"""Bytes by ONNX element type (float, float16, uint8, int8)."""


def work_of(model: onnx.ModelProto, batch: int) -> tuple[BlockWork, ...]:
    """The work of each block of a graph that rescompile wrote, at ``batch`` images, in the order of execution.

    Raises:
        GraphError: shapes or blocks cannot be found, because rescompile did not write the graph.
    """
    graph = _Sized(model, batch)
    fields = ("float_ops", "int8_ops", "weight_bytes", "activation_bytes", "layers")
    found = {block: dict.fromkeys(fields, 0) for block in block_outputs(model)}
    for node in model.graph.node:
        block = found.setdefault(block_of(node.name), dict.fromkeys(fields, 0))
        for field, value in _node_work(node, graph).items():
            block[field] += value
    return tuple(BlockWork(block=block, **sums) for block, sums in found.items())


def _node_work(node: onnx.NodeProto, graph: _Sized) -> Mapping[str, int]:
    if node.op_type in ("Conv", "Gemm"):
        weight = graph.shape(node.input[1])
        # [out, in/groups, kh, kw] of a convolution; [out, in] or [in, out] of the classifier
        depth = math.prod(weight[1:]) if node.op_type == "Conv" else graph.shape(node.input[0])[-1]
        ops = 2 * depth * graph.count(node.output[0])
        integer = graph.is_quantized(node.input[0]) and graph.is_quantized(node.input[1])
        return {
            "int8_ops" if integer else "float_ops": ops,
            "weight_bytes": math.prod(weight) * graph.width(node.input[1]),
            "activation_bytes": graph.bytes(node.input[0]) + graph.bytes(node.output[0]),
            "layers": 1,
        }
    if node.op_type in _POOLS:
        moved = graph.bytes(node.input[0]) + graph.bytes(node.output[0])
        return {"activation_bytes": moved, "float_ops": graph.count(node.input[0]), "layers": 1}
    if node.op_type == "Add" and node.name.endswith(".add"):
        block = node.name.removesuffix(".add")
        skips = [name for name in node.input if not ends_branch(graph.tensors[name], block)]
        moved = sum(graph.bytes(name) for name in skips[:1])
        return {"activation_bytes": moved, "float_ops": graph.count(node.output[0])}
    return {}


class _Sized:
    """Shapes and types of a graph's tensors at one batch size."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        import onnx

        fixed, _ = without_weights(model)
        fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        del fixed.graph.value_info[:]
        for output in fixed.graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, int] = {}
        for tensor in inferred.initializer:
            self._shapes[tensor.name], self._types[tensor.name] = tuple(tensor.dims), tensor.data_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            kind = value.type.tensor_type
            self._shapes[value.name] = tuple(size.dim_value or batch for size in kind.shape.dim)
            self._types[value.name] = kind.elem_type
        self.tensors = read(model).tensors()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; raises GraphError where it could not be inferred."""
        if name not in self._shapes:
            raise GraphError(f"the shape of '{name}' is not known; pass an engine that rescompile built")
        return self._shapes[name]

    def count(self, name: str) -> int:
        """Number of elements."""
        return math.prod(self.shape(name))

    def bytes(self, name: str) -> int:
        """Bytes of the tensor in an engine."""
        return self.count(name) * self.width(name)

    def width(self, name: str) -> int:
        """Bytes of one element: 1 where a quantizer made the tensor, or where only quantizers read it."""
        if self.is_quantized(name) or self._becomes_int8(name):
            return 1
        return _BYTES.get(self._types.get(name, 1), 4)

    def is_quantized(self, name: str) -> bool:
        """Whether a DequantizeLinear made the tensor."""
        return made_by(self.tensors[name]) == "DequantizeLinear"

    def _becomes_int8(self, name: str) -> bool:
        """Whether all its readers, behind a ReLU and add that fuse, are quantizers."""
        tensor = self.tensors[name]
        for _ in range(4):
            readers = consumers(tensor)
            kinds = {node.op for node in readers}
            if kinds == {"QuantizeLinear"}:
                return True
            if kinds not in ({"Relu"}, {"Add"}):
                return False
            tensor = readers[0].outputs[0]
        return False

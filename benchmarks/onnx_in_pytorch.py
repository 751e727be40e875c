"""A deployable graph executed by PyTorch in fp32 or fp64, with the values of its quantizers before rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from calibration.network import Network, Node, Values

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Execution:
    """The result of one execution."""

    logits: Tensor
    unrounded: dict[str, Tensor] = field(repr=False)
    """Quantized tensor to its values in units of the scale, from the zero point on, before they are rounded."""


def execute(
    model: onnx.ModelProto,
    images: NDArray[Any],
    dtype: torch.dtype,
    integers: Mapping[str, Tensor] | None = None,
) -> Execution:
    """Execute ``model`` on ``images``, computing everything but integers in ``dtype``.

    Args:
        model: an INT8 graph made by ``rescompile``.
        images: in the graph's own layout and type.
        dtype: fp32 or fp64.
        integers: int8 tensors that replace the outputs of quantizers, by the name of the quantized tensor.
    """
    network = _Recorder(_in_one_type(model, dtype), integers or {})
    x = torch.from_numpy(images)
    logits = network.run(x.to(dtype) if x.is_floating_point() else x)
    return Execution(logits, network.unrounded)


class _Recorder(Network):
    """A network that keeps what its quantizers round, and can replace what they return."""

    def __init__(self, model: onnx.ModelProto, integers: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.unrounded: dict[str, Tensor] = {}
        self._integers = integers

    def step(self, node: Node, values: Values) -> Tensor:
        """Output of one node."""
        output = super().step(node, values)
        if node.op != "QuantizeLinear":
            return output
        tensor, scale, zero_point = node.inputs
        self.unrounded[tensor] = values[tensor] / self.constants[scale] + self.constants[zero_point]
        return self._integers.get(tensor, output)


def _in_one_type(model: onnx.ModelProto, dtype: torch.dtype) -> onnx.ModelProto:
    """``model`` with ``dtype`` in place of every floating-point type."""
    kind = {torch.float32: onnx.TensorProto.FLOAT, torch.float64: onnx.TensorProto.DOUBLE}[dtype]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in _FLOATS:
            values = numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))
    for node in copy.graph.node:
        if node.op_type == "Cast":
            next(entry for entry in node.attribute if entry.name == "to").i = kind
    return copy

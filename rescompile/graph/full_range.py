"""A ReLU by saturation: all 256 values of int8 for tensors that cannot be negative, with zero points of 0.

TensorRT asks for a zero point of 0, which leaves half of int8 unused behind a ReLU. Let x >= 0 be quantized with the
zero point -128, q = clamp(round(x / s) - 128, -128, 127), so that x ~ s * q + z with the constant z = 128 * s. The
constant moves into biases, and what remains has no zero point:

    maker     y = relu(conv + b), Q with zero point -128     ->  y' = conv + (b - z), Q with zero point 0
    readers   W y + b                                        ->  W y' + (b + z * sum W)
    skips     conv + b + y                                   ->  conv + (b + z) + y'

The ReLU goes away, because the quantizer saturates at -128, which is where y = 0 lies. The integers are the same, and
the engine has one operation less. A reader that pads its input with zeros would pad with z instead, so only
convolutions without padding may read such a tensor: the 1x1 convolutions of bottlenecks
(``topology.full_range_tensors``).

``fold_zero_points`` goes that way and ``unfold_zero_points`` back, for what takes unsigned activations. The graph
carries z, as ``offsets`` says.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.offsets import PREFIX, ZERO_POINT, offsets_of
from rescompile.graph.surgeon import read, write
from rescompile.graph.topology import WEIGHTED_OPS, consumers


def fold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every zero point of -128 moved into biases, and the ReLU in front of its quantizer gone.

    Raises:
        GraphError: a quantizer with that zero point whose tensor a ReLU does not make, or whose readers cannot take it.
    """
    graph = read(model)
    found = [node for node in graph.nodes if node.op == "QuantizeLinear" and _zero_point(node) == ZERO_POINT]
    for quantize in found:
        tensor, offset = quantize.inputs[0], -ZERO_POINT * float(quantize.inputs[1].values)
        made = _above_pool(tensor).inputs
        if not made or made[0].op != "Relu":
            raise GraphError(
                f"'{tensor.name}' has the zero point {ZERO_POINT}, but no ReLU makes it: quantize it symmetrically"
            )
        (dequantize,) = consumers(quantize.outputs[0])
        (relu,) = made
        maker, output = relu.inputs[0].inputs[0], relu.outputs[0]
        _move(maker, dequantize.outputs[0], offset)
        relu.outputs.clear()
        maker.outputs = [output]
        _set_zero_point(quantize, dequantize, 0)
        graph.rescompile_metadata[PREFIX + tensor.name] = offset.hex()
    return write(graph) if found else model


def unfold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """The inverse of ``fold_zero_points``, by the offsets that ``model`` carries; a graph without any as it is.

    Raises:
        GraphError: an offset that is damaged, or that no quantizer belongs to.
    """
    offsets = offsets_of(model)
    if not offsets:
        return model
    graph = read(model)
    quantizers = {node.inputs[0].name: node for node in graph.nodes if node.op == "QuantizeLinear"}
    for name, offset in offsets.items():
        if name not in quantizers:
            raise GraphError(f"the graph's offset of '{name}' has no quantizer; build the engine again")
        quantize = quantizers[name]
        output = _above_pool(quantize.inputs[0])
        maker = output.inputs[0]
        (dequantize,) = consumers(quantize.outputs[0])
        _move(maker, dequantize.outputs[0], -offset)
        summed = gs.Variable(f"{output.name}.sum", output.dtype, output.shape)
        maker.outputs = [summed]
        graph.nodes.append(gs.Node("Relu", f"{output.name}.relu", {}, [summed], [output]))
        _set_zero_point(quantize, dequantize, ZERO_POINT)
    graph.rescompile_metadata = {
        key: value for key, value in graph.rescompile_metadata.items() if not key.startswith(PREFIX)
    }
    return write(graph)


def _move(maker: gs.Node, restored: gs.Variable, offset: float) -> None:
    """Take ``offset`` away from what ``maker`` makes, and give it back to those who read ``restored``."""
    _add_to_bias(_branch_of(maker), -offset)
    for reader in consumers(restored):
        if reader.op in WEIGHTED_OPS:
            _require_unpadded(reader)
            _add_to_bias(reader, offset * _sums(reader))
        elif reader.op == "Add":
            _add_to_bias(_branch_of(reader), offset)
        else:
            raise GraphError(
                f"'{reader.name}' ({reader.op}) cannot read a tensor of full range: only a convolution"
            )


def _require_unpadded(reader: gs.Node) -> None:
    """Refuse a reader that fills its input up with zeros.

    Raises:
        GraphError: it does.
    """
    if any(reader.attrs.get("pads", ())):
        raise GraphError(f"'{reader.name}' pads a tensor of full range with zeros, which are not zero there")


def _above_pool(tensor: gs.Tensor) -> gs.Tensor:
    """What a max pool reads, where ``tensor`` comes from one: it commutes with Q, DQ and offsets."""
    return tensor.inputs[0].inputs[0] if tensor.inputs and tensor.inputs[0].op == "MaxPool" else tensor


def _branch_of(node: gs.Node) -> gs.Node:
    """The convolution whose bias stands for a constant in the output of ``node``, an Add or that convolution."""
    if node.op == "Add":
        node = next(each.inputs[0] for each in node.inputs if each.inputs and each.inputs[0].op == "Conv")
    if node.op not in WEIGHTED_OPS:
        raise GraphError(f"'{node.name}' ({node.op}) has no bias that an offset could move to")
    return node


def _sums(reader: gs.Node) -> NDArray[np.float64]:
    """[O] sums of the weights that ``reader`` multiplies with, INT8 or not."""
    weight = reader.inputs[1]
    if isinstance(weight, gs.Constant):
        values = weight.values.astype(np.float64)
    else:
        integers, scales = (each.values for each in weight.inputs[0].inputs[:2])
        values = integers.astype(np.float64) * scales.astype(np.float64).reshape(
            -1, *[1] * (integers.ndim - 1)
        )
    if reader.op == "Gemm" and not reader.attrs.get("transB"):
        values = values.T
    sums: NDArray[np.float64] = values.reshape(len(values), -1).sum(axis=1)
    return sums


def _add_to_bias(node: gs.Node, change: float | NDArray[np.float64]) -> None:
    bias = node.inputs[2]
    moved = (bias.values.astype(np.float64) + change).astype(bias.values.dtype)
    node.inputs[2] = gs.Constant(bias.name, moved)


def _zero_point(quantize: gs.Node) -> int:
    return int(quantize.inputs[2].values) if len(quantize.inputs) > 2 else 0


def _set_zero_point(quantize: gs.Node, dequantize: gs.Node, value: int) -> None:
    zero = gs.Constant(quantize.inputs[2].name, np.array(value, np.int8))
    quantize.inputs[2] = dequantize.inputs[2] = zero

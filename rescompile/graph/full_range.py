"""Full range: all 256 values of int8 for tensors that cannot be negative, with zero points of 0.

TensorRT asks for a zero point of 0, which leaves half of int8 unused behind a ReLU. Let x >= 0 be quantized with the
zero point -128, q = clamp(round(x / s) - 128, -128, 127), so that x ~ s * q + z with the constant z = 128 * s. The
constant moves into biases, and the quantizers that remain have a zero point of 0:

    maker     y = relu(conv + b), Q with zero point -128     ->  y' = conv + (b - z), Q with zero point 0
    readers   W y + b                                        ->  W y' + (b + z * sum W)
    skips     conv + b + y                                   ->  conv + (b + z) + y'

The ReLU goes away, because the quantizer saturates at -128, which is where y = 0 lies. The integers are the same, and
the engine has one operation less. Of a Clip from 0 up, such as a ReLU6, the upper bound stays, less z. A convolution
that pads its input with zeros would pad with z instead; its tensor gets constant channels, so that z cancels there. An
option A shortcut pads with the new value of zero, -z.

``fold_zero_points`` does this and ``unfold_zero_points`` undoes it, for backends with unsigned activations. The graph
records z (``metadata.OFFSET``).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.shared.constant_channels import add_constant_channels, balance, remove_constant_channels
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import (
    MOVEMENT_OPS,
    WEIGHTED_OPS,
    consumers,
    made_by,
    pads_input,
    rectifier_of,
)
from rescompile.graph.shared.metadata import OFFSET, ZERO_POINT, drop_entries, offsets_of


def fold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every zero point of -128 moved into biases, and without the ReLU in front of its quantizer.

    Raises:
        GraphError: a tensor with that zero point that no ReLU or Clip makes, or whose readers cannot take it.
    """
    graph = read(model)
    found = [node for node in graph.nodes if node.op == "QuantizeLinear" and _is_full_range(node)]
    if not found:
        return model
    rectifiers = [_rectifier_of(quantize) for quantize in found]
    reading = [node for quantize in found for node in consumers(_restored(quantize))]
    add_constant_channels(graph, [node for node in reading if pads_input(node)])
    for quantize, rectifier in zip(found, rectifiers, strict=True):
        offset = -ZERO_POINT * float(quantize.inputs[1].values)
        _add_to_bias(_branch_of(rectifier.inputs[0].inputs[0]), -offset)
        _shift_readers(graph, _restored(quantize), offset, folding=True)
        _let_saturate(rectifier, offset)
        _set_zero_point(quantize, 0)
        graph.rescompile_metadata[OFFSET + quantize.inputs[0].name] = offset.hex()
    return write(graph)


def unfold_zero_points(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undo ``fold_zero_points`` with the offsets that ``model`` records; a graph without offsets is unchanged.

    Raises:
        GraphError: an offset that is damaged, or whose tensor has no quantizer.
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
        if _is_moved(quantize):
            continue  # done together with the tensor that is moved
        output = _above_pool(quantize.inputs[0])
        (maker,) = output.inputs
        _add_to_bias(_branch_of(maker.inputs[0].inputs[0] if maker.op == "Clip" else maker), offset)
        _shift_readers(graph, _restored(quantize), offset, folding=False)
        _rectify(graph, output, offset)
        _set_zero_point(quantize, ZERO_POINT)
    remove_constant_channels(graph)
    drop_entries(graph, OFFSET)
    return write(graph)


def _let_saturate(rectifier: gs.Node, offset: float) -> None:
    """Take away the bound at 0, where the quantizer saturates, and lower another one by ``offset``."""
    (output,) = rectifier.outputs
    if len(rectifier.inputs) > 2 and not rectifier.inputs[2].is_empty():
        _set_bounds(rectifier, gs.Variable.empty(), -offset)
        return
    (maker,) = rectifier.inputs[0].inputs
    rectifier.outputs.clear()
    maker.outputs = [output]


def _rectify(graph: gs.Graph, output: gs.Variable, offset: float) -> None:
    """Undo ``_let_saturate`` in front of ``output``."""
    (maker,) = output.inputs
    if maker.op == "Clip":
        zero = gs.Constant(f"{output.name}.lowest", np.zeros((), maker.inputs[2].values.dtype))
        _set_bounds(maker, zero, offset)
        return
    summed = gs.Variable(f"{output.name}.sum", output.dtype, output.shape)
    maker.outputs = [summed]
    graph.nodes.append(gs.Node("Relu", f"{output.name}.relu", {}, [summed], [output]))


def _set_bounds(clip: gs.Node, low: gs.Tensor, change: float) -> None:
    """Give ``clip`` the lower bound ``low``, and add ``change`` to its upper one, which other nodes may share."""
    high = clip.inputs[2].values
    moved = np.asarray(high.astype(np.float64) + change, high.dtype)
    clip.inputs = [clip.inputs[0], low, gs.Constant(f"{clip.outputs[0].name}.highest", moved)]


def _shift_readers(graph: gs.Graph, restored: gs.Variable, offset: float, *, folding: bool) -> None:
    """Let the readers of the dequantized tensor ``restored`` compute without its offset, or with it again."""
    change = offset if folding else -offset
    for reader in consumers(restored):
        if pads_input(reader):
            if folding:
                balance(graph, reader)
        elif reader.op in WEIGHTED_OPS:
            _add_to_bias(reader, change * _sums(reader))
        elif reader.op == "Add":
            _add_to_bias(_branch_of(reader), change)
        elif reader.op in MOVEMENT_OPS:
            _shift_movement(graph, reader, offset, folding=folding)
        else:
            raise GraphError(
                f"'{reader.name}' ({reader.op}) cannot read a tensor of full range; convolutions and adds can"
            )


def _shift_movement(graph: gs.Graph, node: gs.Node, offset: float, *, folding: bool) -> None:
    """Rewrite a node of an option A shortcut: its output has the same zero, which a Pad pads with."""
    (moved,) = node.outputs
    if node.op == "Pad":
        zero = gs.Constant(f"{node.name}.value", np.array(-offset, moved.dtype))
        node.inputs = [*node.inputs[:2], *[zero] * folding]
    quantizers = [reader for reader in consumers(moved) if reader.op == "QuantizeLinear"]
    for quantize in quantizers:
        _set_zero_point(quantize, 0 if folding else ZERO_POINT)
        if folding:
            graph.rescompile_metadata[OFFSET + moved.name] = offset.hex()
        _shift_readers(graph, _restored(quantize), offset, folding=folding)
    if not quantizers:
        _shift_readers(graph, moved, offset, folding=folding)


def _above_pool(tensor: gs.Tensor) -> gs.Tensor:
    """The input of the max pool that makes ``tensor``, else ``tensor``: pools commute with Q, DQ and offsets."""
    return tensor.inputs[0].inputs[0] if made_by(tensor) == "MaxPool" else tensor


def _branch_of(node: gs.Node) -> gs.Node:
    """The convolution whose bias is added to the output of ``node``, which is an Add or that convolution itself."""
    if node.op == "Add":
        convolutions = [
            each.inputs[0] for each in node.inputs if made_by(each) == "Conv" and len(consumers(each)) == 1
        ]
        node = convolutions[0] if convolutions else node
    if node.op not in WEIGHTED_OPS:
        raise GraphError(f"'{node.name}' ({node.op}) has no bias that an offset could move to")
    return node


def _sums(reader: gs.Node) -> NDArray[np.float64]:
    """Sums [O] of the weights of ``reader``, INT8 or not."""
    weight = reader.inputs[1]
    if isinstance(weight, gs.Constant):
        values = weight.values.astype(np.float64)
    else:
        integers, scales = (each.values for each in weight.inputs[0].inputs[:2])
        scales = scales.astype(np.float64).reshape(-1, *[1] * (integers.ndim - 1))
        values = integers.astype(np.float64) * scales
    sums: NDArray[np.float64] = values.reshape(len(values), -1).sum(axis=1)
    return sums


def _add_to_bias(node: gs.Node, change: float | NDArray[np.float64]) -> None:
    bias = node.inputs[2]
    moved = (bias.values.astype(np.float64) + change).astype(bias.values.dtype)
    node.inputs[2] = gs.Constant(bias.name, moved)


def _is_full_range(quantize: gs.Node) -> bool:
    """Whether ``quantize`` stores zero as -128 by choice, not because a shortcut moves such values to it."""
    chosen = len(quantize.inputs) > 2 and int(quantize.inputs[2].values) == ZERO_POINT
    return chosen and not _is_moved(quantize)


def _is_moved(quantize: gs.Node) -> bool:
    return made_by(quantize.inputs[0]) in MOVEMENT_OPS


def _rectifier_of(quantize: gs.Node) -> gs.Node:
    tensor = quantize.inputs[0]
    rectifier = rectifier_of(_above_pool(tensor))
    if rectifier is None:
        raise GraphError(
            f"'{tensor.name}' has the zero point {ZERO_POINT}, but no ReLU makes it: quantize it symmetrically"
        )
    return rectifier


def _restored(quantize: gs.Node) -> gs.Variable:
    """The dequantized tensor behind ``quantize``."""
    (dequantize,) = consumers(quantize.outputs[0])
    return dequantize.outputs[0]


def _set_zero_point(quantize: gs.Node, value: int) -> None:
    (dequantize,) = consumers(quantize.outputs[0])
    zero = gs.Constant(quantize.inputs[2].name, np.array(value, np.int8))
    quantize.inputs[2] = dequantize.inputs[2] = zero

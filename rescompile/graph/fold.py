"""Batch norms, and arithmetic with a constant for each channel, folded into the convolution before, in float64.

    y = gamma * (conv(x) + b - mean) / sqrt(var + eps) + beta
      = conv(x; W * f) + b * f + c,      f = gamma / sqrt(var + eps),  c = beta - mean * f   per output channel

Frozen norms of detectors are a Mul and an Add: f is the one's constant, c the other's. INT8 scales are taken from the
folded weights, because those are what the engine multiplies with.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import WEIGHTED_OPS

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Factor and offset of every channel."""


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with affine operations per channel folded into the convolutions and linear layers directly before them.

    Other batch norms stay, as those in front of a pre-activation block. Every convolution has a bias.

    Raises:
        GraphError: a batch norm whose parameters are not constants, or whose variance is not positive.
    """
    graph = read(model)
    for node in list(graph.nodes):
        for source in _sources(node):
            owner = _owner(source, graph)
            if owner is not None and (affine := _affine(node, owner)) is not None:
                _fold_one(node, source, owner, affine)
    graph.cleanup()
    for conv in (node for node in graph.nodes if node.op == "Conv"):
        if len(conv.inputs) == 2 and isinstance(conv.inputs[1], gs.Constant):
            _set_input(conv, 2, f"{conv.name}.bias", np.zeros(conv.inputs[1].shape[0], np.float32))
    return write(graph)


def _sources(node: gs.Node) -> list[gs.Tensor]:
    """The tensor that ``node`` may only scale and shift; none where it does anything else."""
    if node.op == "BatchNormalization":
        return [node.inputs[0]]
    if node.op not in ("Mul", "Add", "Sub", "Div"):
        return []
    variables = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    return variables if len(variables) == 1 else []


def _owner(source: gs.Tensor, graph: gs.Graph) -> gs.Node | None:
    """The convolution or linear layer whose output ``source`` has one reader; None if there is none."""
    maker = source.inputs[0] if source.inputs else None
    if maker is None or maker.op not in WEIGHTED_OPS or len(source.outputs) != 1 or source in graph.outputs:
        return None
    return maker if isinstance(maker.inputs[1], gs.Constant) else None


def _affine(node: gs.Node, owner: gs.Node) -> Affine | None:
    """Factor and offset of ``node`` for each channel of ``owner``; None if its constant differs within a channel."""
    if node.op == "BatchNormalization":
        return _norm(node)
    constant = next(tensor for tensor in node.inputs if isinstance(tensor, gs.Constant))
    values = _by_channel(constant.values, owner.inputs[1].shape[0], len(owner.inputs[1].shape))
    if values is None:
        return None
    one, zero, behind = np.ones_like(values), np.zeros_like(values), constant is node.inputs[1]
    if node.op == "Mul":
        return values, zero
    if node.op == "Add":
        return one, values
    if node.op == "Sub":
        return (one, -values) if behind else (-one, values)
    return (1 / values, zero) if behind and values.all() else None


def _by_channel(values: NDArray[np.generic], count: int, rank: int) -> NDArray[np.float64] | None:
    """A constant [count] that an operation with a tensor of ``rank`` dimensions broadcasts by channel, axis 1."""
    shape = (1,) * (rank - values.ndim) + values.shape
    others = shape[:1] + shape[2:]
    if len(shape) != rank or shape[1] not in (1, count) or others != (1,) * (rank - 1):
        return None
    return np.array(np.broadcast_to(values.ravel(), count), np.float64)


def _norm(norm: gs.Node) -> Affine:
    gamma, beta, mean, var = (_constant(tensor, norm) for tensor in norm.inputs[1:5])
    variance = var + float(norm.attrs.get("epsilon", 1e-5))
    if not np.all(variance > 0):
        channel = int(np.argmin(variance))
        raise GraphError(
            f"batch norm '{norm.name}' has variance + epsilon = {variance[channel]:g} in channel {channel}; "
            "it must be positive: the checkpoint is damaged"
        )
    factor = gamma / np.sqrt(variance)
    return factor, beta - mean * factor


def _fold_one(node: gs.Node, source: gs.Tensor, conv: gs.Node, affine: Affine) -> None:
    factor, offset = affine
    weight = _constant(conv.inputs[1], conv)
    bias = _constant(conv.inputs[2], conv) if len(conv.inputs) > 2 else np.zeros(len(factor))
    folded_weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    _set_parameters(conv, folded_weight, bias * factor + offset)
    output = node.outputs[0]
    if source.name == conv.name:
        # tensors that are named after their nodes stay so
        output.name, source.name = conv.name, node.name
    node.outputs.clear()
    conv.outputs = [output]


def _set_parameters(conv: gs.Node, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    for position, (kind, values) in enumerate((("weight", weight), ("bias", bias)), start=1):
        # a folded number can overflow fp32 although no parameter did
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise GraphError(
                f"the {kind} of '{conv.name}' is not finite after folding its norm: check the checkpoint"
            )
        _set_input(conv, position, f"{conv.name}.{kind}", rounded)


def _set_input(conv: gs.Node, position: int, name: str, values: NDArray[np.float32]) -> None:
    conv.inputs = [*conv.inputs[:position], gs.Constant(name, values), *conv.inputs[position + 1 :]]


def _constant(tensor: gs.Tensor, owner: gs.Node) -> NDArray[np.float64]:
    if not isinstance(tensor, gs.Constant):
        raise GraphError(
            f"'{owner.name}' takes '{tensor.name}', which is computed in the graph; parameters must be constants: "
            "export the model in eval mode with constant folding"
        )
    return np.asarray(tensor.values, dtype=np.float64)

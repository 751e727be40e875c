"""Batch norm folded into the convolution before it, in float64.

    y = gamma * (conv(x) + b - mean) / sqrt(var + eps) + beta
      = conv(x; W * f) + (b - mean) * f + beta,      f = gamma / sqrt(var + eps)   per output channel

INT8 scales are taken from the folded weights, because those are what the engine multiplies with.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import WEIGHTED_OPS


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with batch norms folded into the convolutions and linear layers that they follow directly.

    Other batch norms stay, as those in front of a pre-activation block. Every convolution has a bias.

    Raises:
        GraphError: a batch norm whose parameters are not constants, or whose variance is not positive.
    """
    graph = read(model)
    for norm in [node for node in graph.nodes if node.op == "BatchNormalization"]:
        if (owner := _owner(norm, graph)) is not None:
            _fold_one(norm, owner)
    graph.cleanup()
    for conv in (node for node in graph.nodes if node.op == "Conv"):
        if len(conv.inputs) == 2 and isinstance(conv.inputs[1], gs.Constant):
            _set_input(conv, 2, f"{conv.name}.bias", np.zeros(conv.inputs[1].shape[0], np.float32))
    return write(graph)


def _owner(norm: gs.Node, graph: gs.Graph) -> gs.Node | None:
    """The convolution or linear layer whose output ``norm`` alone reads; None where there is none."""
    source = norm.inputs[0]
    maker = source.inputs[0] if source.inputs else None
    if maker is None or maker.op not in WEIGHTED_OPS or len(source.outputs) != 1 or source in graph.outputs:
        return None
    return maker if isinstance(maker.inputs[1], gs.Constant) else None


def _fold_one(norm: gs.Node, conv: gs.Node) -> None:
    source = norm.inputs[0]
    gamma, beta, mean, var = (_constant(tensor, norm) for tensor in norm.inputs[1:5])
    variance = var + float(norm.attrs.get("epsilon", 1e-5))
    if not np.all(variance > 0):
        channel = int(np.argmin(variance))
        raise GraphError(
            f"batch norm '{norm.name}' has variance + epsilon = {variance[channel]:g} in channel {channel}; "
            "it must be positive: the checkpoint is damaged"
        )
    factor = gamma / np.sqrt(variance)
    weight = _constant(conv.inputs[1], conv)
    bias = _constant(conv.inputs[2], conv) if len(conv.inputs) > 2 else np.zeros(len(factor))
    folded_weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    _set_parameters(conv, folded_weight, (bias - mean) * factor + beta)
    output = norm.outputs[0]
    if source.name == conv.name:
        # tensors that are named after their nodes stay so
        output.name, source.name = conv.name, norm.name
    norm.outputs.clear()
    conv.outputs = [output]


def _set_parameters(conv: gs.Node, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    for position, (kind, values) in enumerate((("weight", weight), ("bias", bias)), start=1):
        # a folded number can overflow fp32 although no parameter did
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise GraphError(
                f"the {kind} of '{conv.name}' is not finite after folding its batch norm: check the checkpoint"
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

"""Which node makes a tensor, which nodes read it, and what stands behind Q/DQ and shortcuts, in an editable graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_graphsurgeon as gs

from calibration import operators

WEIGHTED_OPS = operators.WEIGHTED_OPS
MOVEMENT_OPS = ("Slice", "Pad")
"""Operators of the option A shortcut; they only move values, so they commute with Q and DQ."""
MOVING_OPS = frozenset(name for name, entry in operators.OPERATORS.items() if entry.moves)
"""Operators whose outputs consist of values of their inputs."""
QUANTIZER_OPS = ("QuantizeLinear", "DequantizeLinear")


def made_by(tensor: gs.Tensor) -> str:
    """The operator that makes ``tensor``; empty for an input or a constant."""
    return tensor.inputs[0].op if tensor.inputs else ""


def before_movement(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor that the slices and pads above ``tensor`` move; ``tensor`` itself where there are none."""
    return step_above(tensor, MOVEMENT_OPS)


def moved_by(node: gs.Node) -> list[gs.Tensor]:
    """The tensors whose values the outputs of ``node`` consist of, with zeros perhaps; none where it computes values.

    Whatever scale holds the values of all these tensors also holds those of the outputs.
    """
    fills = node.inputs[2] if node.op == "Pad" and len(node.inputs) > 2 else None
    if node.op == "Pad" and node.attrs.get("mode", "constant") == "constant" and not _is_zero(fills):
        return []
    nearest = node.op == "Resize" and node.attrs.get("mode", "nearest") == "nearest"
    single = node.op == "AveragePool" and set(node.attrs["kernel_shape"]) == {1}
    if not (operators.operator(node.op).moves or nearest or single):
        return []
    sources = [each for each in node.inputs if not _is_zero(each)] if node.op == "Concat" else node.inputs[:1]
    return [] if any(isinstance(each, gs.Constant) for each in sources) else list(sources)


def _is_zero(tensor: gs.Tensor | None) -> bool:
    """Whether ``tensor`` is a constant of zeros, or left out."""
    if tensor is None or tensor.is_empty():
        return True
    return isinstance(tensor, gs.Constant) and not tensor.values.any()


def behind_quantizers(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor whose values ``tensor`` carries, with Q/DQ nodes above it stepped over."""
    return step_above(tensor, QUANTIZER_OPS)


def step_above(tensor: gs.Tensor, ops: Collection[str]) -> gs.Tensor:
    """The first tensor, going up through first inputs from ``tensor``, that none of ``ops`` makes."""
    while made_by(tensor) in ops:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def reads_image(node: gs.Node) -> bool:
    """Whether ``node`` reads the network's image, perhaps normalized, padded or quantized in front of it."""
    pointwise = ("Add", "Sub", "Mul", "Div", "Cast", "Transpose", *MOVEMENT_OPS, *QUANTIZER_OPS)
    source = step_above(node.inputs[0], pointwise)
    return not source.inputs and not isinstance(source, gs.Constant)


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """Nodes that use ``tensor``, each once."""
    return list({id(node): node for node in tensor.outputs}.values())


def readers(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """Nodes that use ``tensor``, directly or behind the slices and pads of an option A shortcut."""
    for node in consumers(tensor):
        yield node
        if node.op in MOVEMENT_OPS:
            yield from readers(node.outputs[0])


def cannot_be_negative(tensor: gs.Tensor) -> bool:
    """Whether no value of ``tensor`` is below 0, by the operators that make it."""
    if isinstance(tensor, gs.Constant):
        return bool((tensor.values >= 0).all())
    if not tensor.inputs:
        return False
    node = tensor.inputs[0]
    entry, given = operators.operator(node.op), [each for each in node.inputs if not each.is_empty()]
    if node.op == "Clip":
        low = node.inputs[1] if len(node.inputs) > 1 else None
        return isinstance(low, gs.Constant) and bool((low.values >= 0).all())
    if node.op == "Pad" and len(node.inputs) > 2 and node.inputs[2] in given:
        return cannot_be_negative(node.inputs[0]) and cannot_be_negative(node.inputs[2])
    several = entry.channels in ("tied", "scaled") or node.op == "Concat"
    return entry.never_negative or (
        entry.keeps_sign and all(map(cannot_be_negative, given if several else given[:1]))
    )


def rectifier_of(tensor: gs.Tensor) -> gs.Node | None:
    """The ReLU that makes ``tensor``, or the Clip from 0 to a constant (such as a ReLU6); None where neither does."""
    node = tensor.inputs[0] if made_by(tensor) in ("Relu", "Clip") else None
    if node is None or node.op == "Relu":
        return node
    low, high = (node.inputs[index] if len(node.inputs) > index else None for index in (1, 2))
    bounded = high is None or high.is_empty() or isinstance(high, gs.Constant)
    return node if bounded and isinstance(low, gs.Constant) and not low.values.any() else None


def pads_input(node: gs.Node) -> bool:
    """Whether ``node`` is a convolution that pads its input with zeros."""
    return node.op == "Conv" and any(node.attrs.get("pads", ()))


def weight_of(node: gs.Node) -> gs.Constant:
    """The constant that holds the weights of a convolution or the classifier, INT8 or not."""
    return behind_quantizers(node.inputs[1])


def is_quantized(node: gs.Node) -> bool:
    """Whether a convolution or the classifier has INT8 weights."""
    return made_by(node.inputs[1]) == "DequantizeLinear"

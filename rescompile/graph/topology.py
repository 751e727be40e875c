"""Reading a folded, canonically named graph: its residual blocks, and which tensors get a quantizer.

Shared by the stages, which do not know each other. Everything here only looks; nothing changes the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.surgeon import read
from rescompile.graph.vocabulary import DEQUANTIZE_SUFFIX, INPUT, QUANTIZE_SUFFIX

WEIGHTED_OPS = ("Conv", "Gemm")
MOVEMENT_OPS = ("Slice", "Pad")
"""Ops of the option A shortcut: they move values without arithmetic, so they commute with Q and DQ."""
QUANTIZER_OPS = ("QuantizeLinear", "DequantizeLinear")
HEAD = ("avgpool", "flatten", "fc")
"""Nodes behind the last residual block; together they are the block ``fc``."""


@dataclass(frozen=True)
class ResidualAdd:
    """The end of one block: ``relu(branch + skip)``."""

    block: str
    branch: str
    """Tensor of the block's last convolution."""
    skip: str
    """Tensor that is added to it: the block's input, the downsample convolution's output, or the padded slice."""
    source: str
    """Tensor whose quantizer the skip uses: the block's input, except behind a downsample convolution."""


def residual_adds(graph: gs.Graph) -> list[ResidualAdd]:
    """All residual adds of a graph without Q/DQ, in the order of execution.

    Raises:
        GraphError: an Add that is not the end of a named residual block.
    """
    return [_residual_add(node) for node in graph.nodes if node.op == "Add" and not _adds_constant(node)]


def _adds_constant(add: gs.Node) -> bool:
    """Whether it belongs to what is in front of the stem: normalization, done or undone."""
    return any(isinstance(tensor, gs.Constant) for tensor in add.inputs)


def _residual_add(add: gs.Node) -> ResidualAdd:
    block = add.name.removesuffix(".add")
    by_role: dict[str, gs.Tensor] = {}
    for tensor in add.inputs:
        role = "branch" if _ends_branch(tensor, block) else "skip"
        by_role[role] = tensor
    if len(by_role) != 2:
        raise GraphError(f"'{add.name}' is not the sum of a convolution branch and a shortcut of one block")
    skip = by_role["skip"]
    source = skip
    while source.inputs and source.inputs[0].op in MOVEMENT_OPS:
        source = source.inputs[0].inputs[0]
    return ResidualAdd(block, by_role["branch"].name, skip.name, source.name)


def _ends_branch(tensor: gs.Tensor, block: str) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "Conv" and tensor.name.startswith(f"{block}.conv")


def quantized_tensors(model: onnx.ModelProto) -> list[str]:
    """The activations of a folded fp32 graph that get a quantizer of their own, in the order of execution.

    Inputs of convolutions and of the classifier, the input of the global average pool (so that the last block's
    output has the type of its residual), and outputs of downsample convolutions. A max pool has none: it
    commutes with Q and DQ. An identity skip shares the quantizer of the block's input.
    """
    graph = read(model)
    wanted = {node.inputs[0].name for node in graph.nodes if node.op in (*WEIGHTED_OPS, "GlobalAveragePool")}
    wanted |= {add.source for add in residual_adds(graph)}
    made = [INPUT, *(tensor.name for node in graph.nodes for tensor in node.outputs)]
    return [name for name in made if name in wanted]


def full_range_tensors(model: onnx.ModelProto, *, widest: int = 0) -> list[str]:
    """The ``quantized_tensors`` that may store their zero as -128 (``full_range``), in the order of execution.

    A ReLU makes them, with or without a max pool behind it, and who reads them adds them or multiplies them: without
    padding, as the 1x1 convolutions of bottlenecks do, or in tensors of at most ``widest`` channels with it, which
    then get constant channels. An option A shortcut may stand between a tensor and the addition.
    """
    tensors = read(model).tensors()
    return [name for name in quantized_tensors(model) if _is_full_range(tensors[name], widest)]


def _is_full_range(tensor: gs.Tensor, widest: int) -> bool:
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is not None and maker.op == "MaxPool":
        maker = maker.inputs[0].inputs[0]
    if maker is None or maker.op != "Relu":
        return False
    return all(
        node.op in ("Add", *MOVEMENT_OPS)
        or (node.op == "Conv" and (weight_of(node).shape[1] <= widest or not pads_input(node)))
        for node in readers(tensor)
    )


def reading_all_of_int8(model: onnx.ModelProto, full_range: Collection[str]) -> list[str]:
    """Convolutions and classifiers whose input uses all of int8: it can be negative, or is one of ``full_range``."""
    graph = read(model)
    nodes = [node for node in graph.nodes if node.op in WEIGHTED_OPS]
    return [
        node.name
        for node in nodes
        if node.inputs[0].name in full_range or not _cannot_be_negative(node.inputs[0])
    ]


def _cannot_be_negative(tensor: gs.Tensor) -> bool:
    while tensor.inputs and tensor.inputs[0].op in ("MaxPool", "GlobalAveragePool", "Flatten"):
        tensor = tensor.inputs[0].inputs[0]
    return bool(tensor.inputs) and tensor.inputs[0].op == "Relu"


def block_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Block name to the tensor at its end, in the order of execution: stem, every residual block, logits."""
    names = {node.name: node for node in model.graph.node}
    stem = "maxpool" if "maxpool" in names else "relu1"
    blocks = {
        name.removesuffix(".add"): f"{name.removesuffix('.add')}.relu"
        for name in names
        if name.endswith(".add")
    }
    return {"stem": stem, **blocks, "fc": model.graph.output[0].name}


def block_of(node: str) -> str:
    """The block that the node of this name belongs to, as ``block_outputs`` names it; images come before the stem."""
    stage, _, rest = node.partition(".")
    if stage.startswith("layer"):
        return f"{stage}.{rest.partition('.')[0]}"
    return "fc" if stage in HEAD else "stem"


def maker_block(tensor: gs.Tensor) -> str | None:
    """The block whose nodes make ``tensor``; None for the graph's input."""
    return block_of(tensor.inputs[0].name) if tensor.inputs else None


def is_quantized(node: gs.Node) -> bool:
    """Whether a convolution or the classifier has INT8 weights."""
    made_by = node.inputs[1].inputs
    return bool(made_by) and made_by[0].op == "DequantizeLinear"


def quantizing_blocks(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Each of ``quantized_tensors(model)`` to the blocks for whose sake it is quantized.

    They are the block that makes it and those whose convolutions or classifier read it.
    """
    tensors = read(model).tensors()
    found = {}
    for name in quantized_tensors(model):
        readers = {block_of(node.name) for node in consumers(tensors[name]) if node.op in WEIGHTED_OPS}
        maker = maker_block(tensors[name])
        found[name] = readers if maker is None else readers | {maker}
    return found


def behind_quantizers(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor whose values ``tensor`` carries, with Q/DQ nodes above it stepped over."""
    while tensor.inputs and tensor.inputs[0].op in QUANTIZER_OPS:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def consumers(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """Nodes that use ``tensor``, each once."""
    seen: set[int] = set()
    for node in tensor.outputs:
        if id(node) not in seen:
            seen.add(id(node))
            yield node


def readers(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """Nodes that use ``tensor``, and behind the movements of an option A shortcut those that use what they make."""
    for node in consumers(tensor):
        yield node
        if node.op in MOVEMENT_OPS:
            yield from readers(node.outputs[0])


def pads_input(node: gs.Node) -> bool:
    """Whether ``node`` is a convolution that fills its input up with zeros."""
    return node.op == "Conv" and any(node.attrs.get("pads", ()))


def weight_of(node: gs.Node) -> gs.Constant:
    """The constant that holds the weights of a convolution or the classifier, INT8 or not."""
    return behind_quantizers(node.inputs[1])


def quantizer_names(tensor: str) -> tuple[str, str]:
    """Names of the QuantizeLinear and DequantizeLinear nodes of ``tensor``."""
    return tensor + QUANTIZE_SUFFIX, tensor + DEQUANTIZE_SUFFIX

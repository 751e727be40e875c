"""Structure of a folded, canonically named graph: its residual blocks, and which tensors get a quantizer.

Nothing here changes the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.constant_channels import can_read_constant_channels
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import (
    QUANTIZER_OPS,
    WEIGHTED_OPS,
    before_movement,
    behind_quantizers,
    cannot_be_negative,
    consumers,
    is_quantized,
    made_by,
    moved_by,
    pads_input,
    readers,
    rectifier_of,
    weight_of,
)
from rescompile.graph.shared.metadata import block_ends, float_reasons, float_reasons_in


def scale_sources(graph: gs.Graph) -> dict[str, str]:
    """Each activation that gets a quantizer to the one whose scale it has, in the order of execution.

    They are inputs of convolutions and linear layers in INT8, skips of residual adds in INT8, and the input of a global
    average pool in front of a classifier in INT8 (so that the last block's output has the type of its skip). The input
    of a max pool has none, because the pool commutes with Q and DQ. An identity skip shares the quantizer of the
    block's input. What only moves quantized values, such as a split, or the slice and pad of an option A shortcut, has
    their scale; with another one they would be rounded twice.

    ``graph`` has no Q/DQ.
    """
    floating = float_reasons_in(graph.rescompile_metadata)
    reading = (*WEIGHTED_OPS, "GlobalAveragePool")
    quantized = {
        node.inputs[0].name for node in graph.nodes if node.op in reading and node.name not in floating
    }
    for skip in _skips(graph):
        quantized |= {skip.name, before_movement(skip).name}
    return sources_of_scales(graph, quantized)


def sources_of_scales(graph: gs.Graph, quantized: Collection[str]) -> dict[str, str]:
    """Each of the activations ``quantized`` to the one whose scale fits it; ``graph`` may have the Q/DQ.

    The scale is that of the quantized tensor which all its values come from, else its own.
    """
    on_grid_of = {tensor.name: tensor.name for tensor in graph.inputs if tensor.name in quantized}
    for node in graph.nodes:
        if node.op in QUANTIZER_OPS:
            continue
        sources = {on_grid_of.get(behind_quantizers(tensor).name) for tensor in moved_by(node)}
        for tensor in node.outputs:
            if len(sources) == 1 and (source := next(iter(sources))) is not None:
                on_grid_of[tensor.name] = source
            elif tensor.name in quantized:
                on_grid_of[tensor.name] = tensor.name
    return {name: source for name, source in on_grid_of.items() if name in quantized}


def _skips(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """The skip of each residual add in INT8."""
    floating = float_reasons_in(graph.rescompile_metadata)
    for add in graph.nodes:
        if add.op == "Add" and add.name.endswith(".add") and add.name not in floating:
            branch = branch_of(add)
            assert branch is not None  # placement found it
            yield next(tensor for tensor in add.inputs if tensor is not branch.outputs[0])


def branch_of(add: gs.Node) -> gs.Node | None:
    """The convolution at the end of the branch of a residual addition, which nothing else reads; or None."""
    block = add.name.removesuffix(".add")
    for tensor in add.inputs:
        if ends_branch(tensor, block) and len(consumers(tensor)) == 1:
            return tensor.inputs[0]
    return None


def ends_branch(tensor: gs.Tensor, block: str) -> bool:
    """Whether ``tensor`` is the output of a convolution in the branch of ``block``."""
    return made_by(tensor) == "Conv" and tensor.name.startswith(f"{block}.conv")


def quantized_tensors(model: onnx.ModelProto) -> list[str]:
    """The activations of a folded fp32 graph that calibration observes, in the order of execution.

    They are those that get a quantizer (``scale_sources``), without skips that use the scale of another tensor.
    """
    graph = read(model)
    sources, floating = scale_sources(graph), float_reasons_in(graph.rescompile_metadata)
    weighted = {
        node.inputs[0].name for node in graph.nodes if node.op in WEIGHTED_OPS and node.name not in floating
    }
    return [name for name, source in sources.items() if name == source or name in weighted]


def full_range_tensors(model: onnx.ModelProto, *, widest: int = 0) -> list[str]:
    """The ``quantized_tensors`` that may store their zero as -128 (``full_range``), in the order of execution.

    A ReLU, or a Clip from 0 up, over a weighted operation or a residual addition in INT8 makes such a tensor, perhaps
    with a max pool behind it, and its readers are additions and convolutions that do not pad it. In tensors of at most
    ``widest`` channels they may pad, where constant channels can be added. An option A shortcut may stand between the
    tensor and the addition. What is sliced or padded of such a tensor is one too.
    """
    reasons = reasons_against_full_range(model, widest=widest)
    return [name for name, reason in reasons.items() if reason is None]


def reasons_against_full_range(model: onnx.ModelProto, *, widest: int = 0) -> dict[str, str | None]:
    """For each of the ``quantized_tensors`` why it is not one of ``full_range_tensors``; None where it is."""
    graph = read(model)
    tensors, floating, sources = graph.tensors(), float_reasons(model), scale_sources(graph)
    may_pad = can_read_constant_channels(graph) if widest else set()

    def reason(tensor: gs.Tensor) -> str | None:
        against = [_reason_to_keep_zero(tensor, floating)]
        direct = {id(node) for node in consumers(tensor)}
        for node in readers(tensor):
            # only the tensor itself can get constant channels, not what is moved from it
            most = widest if id(node) in direct else 0
            against.append(_reason_against_offset(node, floating, most, may_pad))
        return next(filter(None, against), None)

    reasons = {source: reason(tensors[source]) for source in dict.fromkeys(sources.values())}
    return {name: reasons[sources[name]] for name in quantized_tensors(model)}


def _reason_to_keep_zero(tensor: gs.Tensor, floating: Collection[str]) -> str | None:
    """Why zero stays 0 in ``tensor``; None if a ReLU makes it from sums that nothing else reads."""
    activation = tensor.inputs[0].inputs[0] if made_by(tensor) == "MaxPool" else tensor
    rectifier = rectifier_of(activation)
    if rectifier is None:
        return "not behind a ReLU"
    summed = rectifier.inputs[0]
    maker = summed.inputs[0] if summed.inputs else None
    read_again = tensor is not activation and len(consumers(activation)) > 1
    if read_again or len(consumers(summed)) > 1:
        return "read twice around a ReLU"
    added = maker is not None and maker.op == "Add" and maker.name not in floating
    if maker is None or not (maker.op in WEIGHTED_OPS or (added and branch_of(maker) is not None)):
        return "made in floating point"
    return None


def _reason_against_offset(
    node: gs.Node, floating: Collection[str], widest: int, may_pad: Collection[str]
) -> str | None:
    """Why ``node`` cannot read a tensor whose zero is not stored as 0; None where it can."""
    if node.name in floating:
        return "read in floating point"
    if node.op == "Conv" and pads_input(node):
        if not widest:
            return "padded by a convolution"
        if node.name not in may_pad:
            return "padded by a convolution that takes no constant channels"
        return None if weight_of(node).shape[1] <= widest else f"padded, of more than {widest} channels"
    if node.op == "Pad":
        zeros = len(node.inputs) == 2 and node.attrs.get("mode", "constant") == "constant"
        return None if zeros else "padded with other values than zeros"
    return None if node.op in ("Conv", "Add", "Slice") else f"read by {node.op}"


def reading_all_of_int8(model: onnx.ModelProto, full_range: Collection[str]) -> list[str]:
    """Convolutions and classifiers whose input uses all of int8: it can be negative, or is one of ``full_range``."""
    floating = float_reasons(model)
    return [
        node.name
        for node in read(model).nodes
        if node.op in WEIGHTED_OPS
        and node.name not in floating
        and (node.inputs[0].name in full_range or not cannot_be_negative(node.inputs[0]))
    ]


def block_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Block name to the tensor at its end, in the order of execution: stem, every residual block, logits."""
    if recorded := block_ends(model):
        return recorded
    names = [node.name for node in model.graph.node]
    blocks = [name.removesuffix(".add") for name in names if name.endswith(".add")]
    return {
        "stem": "maxpool" if "maxpool" in names else "relu1",
        **{block: f"{block}.relu" for block in blocks},
        "fc": model.graph.output[0].name,
    }


def maker_block(tensor: gs.Tensor) -> str | None:
    """The block whose nodes make ``tensor``; None for the graph's input."""
    return block_of(tensor.inputs[0].name) if tensor.inputs else None


def quantizing_blocks(model: onnx.ModelProto) -> dict[str, set[str]]:
    """The blocks that need each of ``quantized_tensors(model)`` in INT8, by tensor."""
    tensors, floating = read(model).tensors(), float_reasons(model)
    return {
        name: _needing(
            tensors[name], [node for node in consumers(tensors[name]) if node.name not in floating]
        )
        for name in quantized_tensors(model)
    }


def blocks_of_quantizers(quantized: gs.Graph) -> dict[str, set[str]]:
    """The blocks that need the quantizer of each activation that has one, by tensor."""
    found = {}
    for quantize in quantized.nodes:
        if quantize.op == "QuantizeLinear":
            tensor, (dequantize,) = quantize.inputs[0], consumers(quantize.outputs[0])
            found[tensor.name] = _needing(tensor, consumers(dequantize.outputs[0]), is_quantized)
    return found


def _needing(
    tensor: gs.Tensor, reading: Iterable[gs.Node], in_int8: Callable[[gs.Node], bool] = lambda node: True
) -> set[str]:
    """The block that makes ``tensor``, and those whose convolutions or classifier read it ``in_int8``."""
    maker = maker_block(tensor)
    blocks = {block_of(node.name) for node in reading if node.op in WEIGHTED_OPS and in_int8(node)}
    return blocks if maker is None else blocks | {maker}

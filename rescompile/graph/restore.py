"""Blocks of a quantized graph put back into floating point; the other blocks stay as they were.

    INT8 block ── Q ── DQ ── FP16 block ── FP16 block ── Q ── DQ ── INT8 block

A tensor between two blocks keeps its Q/DQ while one of the two is INT8: the block in front still writes int8 from its
fused kernel, and the block behind still reads it. So a run of FP16 blocks costs one DQ kernel where it begins and one Q
kernel where it ends (``reformats``); nothing inside it is quantized.

Weights come back as they were before rounding, and biases as they were before correction. INT8 blocks keep theirs, so
a mixed graph needs neither calibration nor rounding of its own.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.editing import read, reconnect, write
from rescompile.graph.shared.links import WEIGHTED_OPS, consumers, is_quantized
from rescompile.graph.shared.topology import block_outputs, maker_block


def restore(
    quantized: onnx.ModelProto, original: onnx.ModelProto, blocks: Collection[str]
) -> onnx.ModelProto:
    """``quantized`` with ``blocks`` computed as in ``original``.

    Args:
        quantized: INT8 graph made by ``quantize``.
        original: the folded fp32 graph that it was made from, equalized where that one was.
        blocks: names as in ``topology.block_outputs``: ``stem``, ``layer3.22``, ``fc``.

    Raises:
        GraphError: a block that the network does not have.
    """
    known = block_outputs(original)
    unknown = [name for name in blocks if name not in known]
    if unknown:
        raise GraphError(f"the network has no block '{unknown[0]}': its blocks are {', '.join(known)}")
    floating, graph = frozenset(blocks), read(quantized)
    exact = {node.name: node for node in read(original).nodes if node.op in WEIGHTED_OPS}
    for node in graph.nodes:
        if node.op in WEIGHTED_OPS and is_quantized(node) and block_of(node.name) in floating:
            for position in (1, 2):
                constant = exact[node.name].inputs[position]
                node.inputs[position] = gs.Constant(constant.name, constant.values)
    for node in [node for node in graph.nodes if node.op == "QuantizeLinear"]:
        _bypass(node, floating)
    return write(graph)


def _bypass(quantize: gs.Node, floating: frozenset[str]) -> None:
    """Let the readers of an activation's Q/DQ pair read the activation itself, unless an INT8 block needs the pair."""
    tensor, (dequantize,) = quantize.inputs[0], consumers(quantize.outputs[0])
    (restored,) = dequantize.outputs
    readers = consumers(restored)
    int8_maker = maker_block(tensor) not in (None, *floating)
    int8_reader = any(node.op in WEIGHTED_OPS and is_quantized(node) for node in readers)
    if not int8_maker and not int8_reader:
        reconnect(readers, restored, tensor)

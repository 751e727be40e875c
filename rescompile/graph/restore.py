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
from rescompile.graph.shared.topology import block_outputs, blocks_of_quantizers


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
    needing = blocks_of_quantizers(graph)
    exact = {node.name: node for node in read(original).nodes if node.op in WEIGHTED_OPS}
    for node in graph.nodes:
        if node.op in WEIGHTED_OPS and is_quantized(node) and block_of(node.name) in floating:
            for position in (1, 2):
                constant = exact[node.name].inputs[position]
                node.inputs[position] = gs.Constant(constant.name, constant.values)
    for node in [node for node in graph.nodes if node.op == "QuantizeLinear"]:
        if needing[node.inputs[0].name] <= floating:
            _bypass(node)
    return write(graph)


def _bypass(quantize: gs.Node) -> None:
    """Let the readers of an activation's Q/DQ pair read the activation itself."""
    tensor, (dequantize,) = quantize.inputs[0], consumers(quantize.outputs[0])
    (restored,) = dequantize.outputs
    reconnect(consumers(restored), restored, tensor)

"""Max pools that read int8: rounding commutes with a maximum, so a quantizer behind a pool may stand in front of it."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import reconnect
from rescompile.graph.shared.links import cannot_be_negative, consumers


def quantize_before_pools(graph: gs.Graph) -> None:
    """Move each max pool of ``graph`` behind the Q/DQ pair that alone reads it.

    TensorRT does so by itself. OpenVINO writes the stem's output, a network's largest tensor, in float, and reads it
    again for the pool. A pool of signed values stays: the form avx2 splits signs where convolutions read a quantizer,
    and OpenVINO 2026.4.1 mixed up the offsets of such values where a convolution and an average read the pool (15 % of
    error).
    """
    for pool in graph.nodes:
        pair = _pair_behind(pool) if pool.op == "MaxPool" else None
        if pair is None:
            continue
        quantize, dequantize = pair
        (source,), (pooled,), (restored,) = pool.inputs, pool.outputs, dequantize.outputs
        reconnect(restored.outputs, restored, pooled)
        quantize.inputs = [source, *quantize.inputs[1:]]
        pool.inputs = [restored]


def _pair_behind(pool: gs.Node) -> tuple[gs.Node, gs.Node] | None:
    """The Q and the DQ between the pool and its readers, where nothing else reads the pool's input or output,
    and no value is negative."""
    quantizers = consumers(pool.outputs[0])
    if [node.op for node in quantizers] != ["QuantizeLinear"] or len(consumers(pool.inputs[0])) != 1:
        return None
    if not cannot_be_negative(pool.inputs[0]):
        return None
    dequantizers = consumers(quantizers[0].outputs[0])
    if [node.op for node in dequantizers] != ["DequantizeLinear"]:
        return None
    return quantizers[0], dequantizers[0]

"""Max pools that read int8: a rounding commutes with a maximum, so the quantizer behind the pool may stand in front."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import read, reconnect, write
from rescompile.graph.shared.links import consumers


def quantize_before_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with each max pool behind the Q/DQ pair that alone reads it; without such a pool as it is.

    TensorRT moves the pair by itself. OpenVINO does not: it writes the stem's output, a network's largest tensor, in
    float, and reads it again for the pool.
    """
    graph = read(model)
    found = [node for node in graph.nodes if node.op == "MaxPool" and _pair_behind(node) is not None]
    for pool in found:
        pair = _pair_behind(pool)
        assert pair is not None
        quantize, dequantize = pair
        (source,), (pooled,), (restored,) = pool.inputs, pool.outputs, dequantize.outputs
        reconnect(restored.outputs, restored, pooled)
        quantize.inputs = [source, *quantize.inputs[1:]]
        pool.inputs = [restored]
    return write(graph) if found else model


def _pair_behind(pool: gs.Node) -> tuple[gs.Node, gs.Node] | None:
    """The Q and the DQ that alone stand between the pool and its readers, where nobody else reads what it pools."""
    (pooled,) = pool.outputs
    readers = consumers(pooled)
    if [node.op for node in readers] != ["QuantizeLinear"] or len(consumers(pool.inputs[0])) != 1:
        return None
    dequantizers = consumers(readers[0].outputs[0])
    if [node.op for node in dequantizers] != ["DequantizeLinear"]:
        return None
    return readers[0], dequantizers[0]

"""Barriers for OpenVINO's passes over quantizers: maxima that change nothing.

* OpenVINO 2026.4.1 quantizes the tensors that a Concat joins one by one where a QuantizeLinear follows, also behind a
  ReLU or a Clip between them. Where that quantizer is signed, the convolution behind it then reads wrong integers:
  errors of 17 to 37 % were seen, whatever was joined.
* It rounds the average of quantized values to their integers where a quantizer follows that it cannot compute with the
  pool: because others read the average, too, or because its values are moved in between.

A barrier keeps such a pair apart, and is computed with the quantizer or the addition behind it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.shared.links import MOVING_OPS, consumers, made_by, step_above

_LOWEST = np.asarray(np.finfo(np.float32).min)


def put_barriers(graph: gs.Graph) -> None:
    """Put barriers into the INT8 ``graph`` where OpenVINO needs them."""
    for node in list(graph.nodes):
        if node.op == "QuantizeLinear" and _is_signed(node):
            (source, *_) = node.inputs
            if made_by(step_above(source, {"Relu", "Clip"})) == "Concat":
                _put(graph, source, [node])
        elif (
            node.op == "AveragePool" and made_by(step_above(node.inputs[0], MOVING_OPS)) == "DequantizeLinear"
        ):
            readers = consumers(node.outputs[0])
            if [reader.op for reader in readers] != ["QuantizeLinear"]:
                _put(graph, node.outputs[0], readers)


def _is_signed(quantize: gs.Node) -> bool:
    zero = quantize.inputs[2].values
    return bool(int(zero) > np.iinfo(zero.dtype).min)


def _put(graph: gs.Graph, tensor: gs.Variable, readers: list[gs.Node]) -> None:
    """A maximum between ``tensor`` and its ``readers``."""
    held = gs.Variable(f"{tensor.name}.held_apart")
    for reader in readers:
        reader.inputs = [held if each is tensor else each for each in reader.inputs]
    lowest = gs.Constant(f"{tensor.name}.lowest", _LOWEST)
    graph.nodes.append(gs.Node("Max", held.name, {}, [tensor, lowest], [held]))

"""How often an activation changes between int8 and floating point on its way through a deployable graph.

TensorRT computes a Q that no INT8 layer stands in front of, and a DQ whose reader computes in floating point, as
kernels of their own: one pass over the tensor each, which no layer absorbs. A network that is INT8 throughout has one
of them, at its input; every run of FP16 blocks inside it adds two.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.surgeon import read
from rescompile.graph.topology import WEIGHTED_OPS, consumers, is_quantized


def reformats(model: onnx.ModelProto) -> int:
    """Number of Q and DQ kernels that stay alone in ``model``, which has Q/DQ or none."""
    graph = read(model)
    entering = [
        node for node in graph.nodes if node.op == "QuantizeLinear" and not _from_int8(node.inputs[0])
    ]
    leaving = [
        node
        for node in graph.nodes
        if node.op == "DequantizeLinear"
        and not isinstance(node.inputs[0], gs.Constant)
        and any(_in_float(reader) for reader in consumers(node.outputs[0]))
    ]
    return len(entering) + len(leaving)


def _from_int8(tensor: gs.Tensor) -> bool:
    """Whether the kernel that makes ``tensor`` can write it as int8."""
    if not tensor.inputs:
        return False
    node = tensor.inputs[0]
    if node.op in WEIGHTED_OPS:
        return is_quantized(node)
    if node.op == "Add":
        return _is_int8_add(node)
    return node.op == "DequantizeLinear" or _from_int8(node.inputs[0])


def _is_int8_add(add: gs.Node) -> bool:
    """A residual add is computed in the kernel of the convolution that it adds to."""
    makers = [tensor.inputs[0] for tensor in add.inputs if tensor.inputs]
    return any(maker.op == "Conv" and is_quantized(maker) for maker in makers)


def _in_float(reader: gs.Node) -> bool:
    if reader.op in WEIGHTED_OPS:
        return not is_quantized(reader)
    if reader.op == "Add":
        return not _is_int8_add(reader)
    if reader.op == "QuantizeLinear":
        return False
    # pooling, flattening, slices and pads have the type of what follows them
    return any(_in_float(behind) for behind in consumers(reader.outputs[0]))


def along(blocks: Sequence[str], floating: Collection[str]) -> int:
    """What ``reformats`` counts in a network of ``blocks`` [stem, ..., fc] with some of them in ``floating`` point.

    Images are floating point, and what the classifier makes of an INT8 block too, without a kernel of its own.
    """
    types = [True, *(name in floating for name in blocks)]
    return sum(left != right for left, right in itertools.pairwise(types))

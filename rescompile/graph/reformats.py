"""How often an activation changes between INT8 and floating point on its way through a deployable graph.

TensorRT runs a Q that no INT8 layer stands in front of, and a DQ whose reader computes in floating point, as kernels
of their own, each with one pass over the tensor. A network that is INT8 throughout has one of them, at its input;
every run of FP16 blocks inside it adds two.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import WEIGHTED_OPS, consumers, is_quantized


def reformats(model: onnx.ModelProto) -> int:
    """Number of Q and DQ nodes in ``model`` that become kernels of their own."""
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


def predicted_reformats(blocks: Sequence[str], floating: Collection[str]) -> int:
    """The number of ``reformats`` in a network of ``blocks`` [stem, ..., fc] with those in ``floating`` not quantized.

    Images are floating point. The logits are too, but the classifier writes them so without a kernel of its own.
    """
    types = [True, *(name in floating for name in blocks)]
    return sum(left != right for left, right in itertools.pairwise(types))


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
    """Whether the residual add is computed in the kernel of an INT8 convolution."""
    makers = [tensor.inputs[0] for tensor in add.inputs if tensor.inputs]
    return any(maker.op == "Conv" and is_quantized(maker) for maker in makers)


def _in_float(reader: gs.Node) -> bool:
    if reader.op in WEIGHTED_OPS:
        return not is_quantized(reader)
    if reader.op == "Add":
        return not _is_int8_add(reader)
    if reader.op == "QuantizeLinear":
        return False
    # pools, Flatten, slices and pads have the type of their readers
    return any(_in_float(behind) for behind in consumers(reader.outputs[0]))

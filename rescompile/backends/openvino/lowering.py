"""The INT8 graph in the form that OpenVINO executes exactly on every x86 CPU.

CPUs without VNNI multiply an unsigned by a signed byte and add two such products in 16 bits, where
255 * 127 * 2 = 64770 saturates silently at 32767. OpenVINO makes a signed activation unsigned by adding 128, so a
tensor after a ReLU would use 128..255 and lose its large values: 30 % relative error in one layer was measured.
The forms below compute the same integers as the deployable graph, without zero points, and none can saturate
(127 * 128 * 2 = 32512, 255 * 64 * 2 = 32640):

* a tensor that cannot be negative is clipped at 127 steps and quantized as uint8 with the same scale;
* a signed tensor x becomes its positive and its negative part side by side, both uint8, and a weight w becomes
  [w, -w] over the doubled input channels: w x = w max(x, 0) + (-w) max(-x, 0). Where no weight exceeds 64, as in graphs
  that are made for OpenVINO (``Backend.narrow_weights``), it stays as it is;
* a tensor of full range (``graph.full_range``) gets its ReLU back and is quantized as uint8 up to 255 steps. Where a
  weight exceeds 64, its readers take the tensor twice, with half of each weight.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rescompile.backends.openvino.pools import quantize_before_pools
from rescompile.errors import BackendError
from rescompile.graph.full_range import unfold_zero_points
from rescompile.graph.shared.metadata import ZERO_POINT

_SIGN_KEEPING = {
    "AveragePool", "Cast", "DequantizeLinear", "Flatten", "GlobalAveragePool", "Identity", "MaxPool",
    "QuantizeLinear", "Reshape", "Slice", "Transpose",
}  # fmt: skip
WEIGHTED = ("Conv", "Gemm")
_HALF = 64
"""Largest weight of which two, times 255 each, add up within 16 bits."""


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with unsigned activations everywhere in front of weighted layers; float graphs as they are.

    Executed as it is written, the lowered graph gives the same logits up to the rounding of float sums.

    Raises:
        BackendError: a signed tensor feeds a grouped convolution, whose channels cannot be doubled.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(quantize_before_pools(unfold_zero_points(model)))
    _Lowering(lowered.graph).run()
    return lowered


class _Lowering:
    """One pass over ``graph``, which it changes; nodes are in the order of execution before and after."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.before: dict[str, list[onnx.NodeProto]] = {}
        """New nodes, by the output of the node in front of which they belong."""
        self.dropped: set[str] = set()
        """Outputs of nodes that nobody reads any more."""

    def run(self) -> None:
        for node in list(self.graph.node):
            if node.op_type != "QuantizeLinear":
                continue
            if self._cannot_be_negative(node.input[0]):
                self._make_unsigned(node)
            else:
                self._split_signs(node)
        ordered = [
            onnx.NodeProto.FromString(each.SerializeToString())
            for node in self.graph.node
            for each in (*self.before.get(node.output[0], []), node)
            if each.output[0] not in self.dropped
        ]
        del self.graph.node[:], self.graph.value_info[:]  # the types that were noted are no longer right
        self.graph.node.extend(ordered)

    def _cannot_be_negative(self, tensor: str) -> bool:
        node = self.producer.get(tensor)
        if node is None:
            return False
        if node.op_type in {"Relu", "Sigmoid"}:
            return True
        if node.op_type == "Clip":
            return len(node.input) > 1 and self._is_zero(node.input[1])
        # a pad without a value of its own pads with zeros
        zero_pad = node.op_type == "Pad" and (len(node.input) < 3 or not node.input[2])
        return (node.op_type in _SIGN_KEEPING or zero_pad) and self._cannot_be_negative(node.input[0])

    def _is_zero(self, name: str) -> bool:
        return name in self.constants and not numpy_helper.to_array(self.constants[name]).any()

    def _make_unsigned(self, quantize: onnx.NodeProto) -> None:
        source, scale = quantize.input[0], numpy_helper.to_array(self.constants[quantize.input[1]])
        zero = self._constant(f"{source}.zero_uint8", np.uint8(0))
        full = int(numpy_helper.to_array(self.constants[quantize.input[2]])) == ZERO_POINT
        quantize.input[2] = zero
        for reader in self.readers.get(quantize.output[0], []):
            if reader.op_type == "DequantizeLinear":
                reader.input[2] = zero
        bottom = self._constant(f"{source}.bottom", np.zeros((), scale.dtype))
        top = self._top(f"{source}.top", 255 if full else 127, scale)
        if full:
            self._halve_weights(quantize)
        producer = self.producer[source]
        alone = len(self.readers[source]) == 1 and source not in {output.name for output in self.graph.output}
        if producer.op_type == "Relu" and alone:
            # in place of the ReLU OpenVINO fuses it into the convolution; behind the ReLU it would not
            producer.op_type = "Clip"
            producer.input.extend([bottom, top])
            return
        clipped = f"{source}.clipped"
        clip = helper.make_node("Clip", [source, bottom, top], [clipped], name=clipped)
        self.before[quantize.output[0]] = [clip]
        quantize.input[0] = clipped

    def _halve_weights(self, quantize: onnx.NodeProto) -> None:
        for dequantize in self.readers.get(quantize.output[0], []):
            for restored in self._through_pools(dequantize.output[0]):
                readers = self.readers.get(restored, [])
                wide = [node for node in readers if self._is_quantized(node) and self._is_wide(node)]
                if wide:
                    self._read_twice(restored, wide)

    def _through_pools(self, tensor: str) -> list[str]:
        """``tensor``, and what max pools make of it."""
        pools = [node for node in self.readers.get(tensor, []) if node.op_type == "MaxPool"]
        return [tensor, *(pool.output[0] for pool in pools)]

    def _read_twice(self, tensor: str, readers: list[onnx.NodeProto]) -> None:
        twice = f"{tensor}.twice"
        concat = helper.make_node("Concat", [tensor, tensor], [twice], name=twice, axis=1)
        self.before.setdefault(readers[0].output[0], []).append(concat)
        for node in readers:
            weight = self._weight(node)
            half = weight >> 1
            halves = np.concatenate([half, weight - half], axis=_input_axis(node))
            self._replace_weight(node, halves, "halves")
            node.input[0] = twice

    def _split_signs(self, quantize: onnx.NodeProto) -> None:
        for dequantize in self.readers.get(quantize.output[0], []):
            readers = self.readers.get(dequantize.output[0], [])
            weighted = [node for node in readers if self._is_quantized(node) and self._is_wide(node)]
            if not weighted:
                continue
            # -(-128) is no int8: where it occurs, a third group of channels holds the missing 1
            groups = 3 if any((self._weight(node) == -128).any() for node in weighted) else 2
            parts = self._signed_parts(quantize, groups, before=weighted[0])
            for node in weighted:
                self._mirror_weight(node, groups)
                node.input[0] = parts
            if len(weighted) == len(readers):
                self.dropped |= {quantize.output[0], dequantize.output[0]}

    def _signed_parts(self, quantize: onnx.NodeProto, groups: int, *, before: onnx.NodeProto) -> str:
        """New nodes: [max(x, 0), max(-x, 0), ...] along the channels, through Q/DQ as uint8."""
        source, scale_name = quantize.input[0], quantize.input[1]
        scale = numpy_helper.to_array(self.constants[scale_name])
        bottom = self._constant(f"{source}.bottom", np.zeros((), scale.dtype))
        zero = self._constant(f"{source}.zero_uint8", np.uint8(0))
        names = [
            f"{source}.{part}" for part in ("positive", "negated", "negative", "parts", "held", "restored")
        ]
        positive, negated, negative, parts, held, restored = names
        tops = [self._top(f"{source}.top", 127, scale), self._top(f"{source}.negative_top", 128, scale)]
        sides = [positive, *[negative] * (groups - 1)]
        self.before[before.output[0]] = [
            helper.make_node("Clip", [source, bottom, tops[0]], [positive], name=positive),
            helper.make_node("Neg", [source], [negated], name=negated),
            helper.make_node("Clip", [negated, bottom, tops[1]], [negative], name=negative),
            helper.make_node("Concat", sides, [parts], name=parts, axis=1),
            helper.make_node("QuantizeLinear", [parts, scale_name, zero], [held], name=held),
            helper.make_node("DequantizeLinear", [held, scale_name, zero], [restored], name=restored),
        ]
        return restored

    def _is_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether ``node`` has an INT8 weight."""
        if node.op_type not in WEIGHTED:
            return False
        weight = self.producer.get(node.input[1])
        return (
            weight is not None and weight.op_type == "DequantizeLinear" and weight.input[0] in self.constants
        )

    def _is_wide(self, node: onnx.NodeProto) -> bool:
        """Whether its weights can leave 16 bits with inputs of all 256 values."""
        return bool(np.abs(self._weight(node).astype(np.int16)).max() > _HALF)

    def _weight(self, node: onnx.NodeProto) -> NDArray[np.int8]:
        return numpy_helper.to_array(self.constants[self.producer[node.input[1]].input[0]])

    def _mirror_weight(self, node: onnx.NodeProto, groups: int) -> None:
        if next((field.i for field in node.attribute if field.name == "group"), 1) != 1:
            raise BackendError(
                f"'{node.name}' is a grouped INT8 convolution of a tensor that can be negative, which OpenVINO does "
                "not compute exactly on every CPU; build with --precision fp16"
            )
        weight = self._weight(node).astype(np.int16)
        mirrored = np.minimum(-weight, 127)
        sides = [weight, mirrored, -weight - mirrored][:groups]
        joined = np.concatenate(sides, axis=_input_axis(node)).astype(np.int8)
        self._replace_weight(node, joined, "mirrored")

    def _replace_weight(self, node: onnx.NodeProto, weight: NDArray[np.int8], what: str) -> None:
        dequantize = self.producer[node.input[1]]
        dequantize.input[0] = self._constant(f"{dequantize.input[0]}.{what}", weight)

    def _top(self, name: str, steps: int, scale: NDArray[np.generic]) -> str:
        return self._constant(name, np.asarray(steps * scale.astype(np.float64), scale.dtype))

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.constants:
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            self.constants[name] = self.graph.initializer[-1]
        return name


def _input_axis(node: onnx.NodeProto) -> int:
    """The weight's axis of input channels: 1, but for a Gemm that does not transpose its weight."""
    transposed = any(field.name == "transB" and field.i for field in node.attribute)
    return 1 if node.op_type == "Conv" or transposed else 0

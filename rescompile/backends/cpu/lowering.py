"""The INT8 graph lowered to a form that OpenVINO executes exactly on a kind of CPU.

CPUs without VNNI multiply an unsigned by a signed byte and add two such products in 16 bits, where
255 * 127 * 2 = 64770 saturates silently at 32767. OpenVINO makes a signed activation unsigned by adding 128, so a
tensor after a ReLU would use 128..255 and lose its large values: 30 % relative error in one layer was measured.
The forms below compute the same integers as the deployable graph, without zero points, and none can saturate
(127 * 128 * 2 = 32512, 255 * 64 * 2 = 32640):

* a tensor that cannot be negative is clipped at 127 steps and quantized as uint8 with the same scale;
* a signed tensor x becomes its positive and its negative part side by side, both uint8, and a weight w becomes
  [w, -w] over the doubled input channels: w x = w max(x, 0) + (-w) max(-x, 0). Where no weight exceeds 64, as in graphs
  that are made for OpenVINO (``Int8Support.full_range``), it stays as it is;
* a tensor of full range (``graph.full_range``) gets its ReLU back and is quantized as uint8 up to 255 steps. Where a
  weight exceeds 64, its readers take the tensor twice, with half of each weight.

CPUs with VNNI or AMX add products in 32 bits. There a tensor of full range stays as it is, since uint8 itself saturates
at 255 steps. A signed tensor also does, but for those that ``unsigned`` makes faster for VNNI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.backends.cpu.barriers import put_barriers
from rescompile.backends.cpu.biases import keep_zero_biases
from rescompile.backends.cpu.clips import keeps_clip, spell_clips_apart
from rescompile.backends.cpu.gathers import count_axes_from_the_back
from rescompile.backends.cpu.padding import pad_behind_quantizer
from rescompile.backends.cpu.pools import quantize_before_pools
from rescompile.backends.cpu.unsigned import shift_signed
from rescompile.errors import BackendError
from rescompile.graph.full_range import unfold_zero_points
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import (
    WEIGHTED_OPS,
    cannot_be_negative,
    consumers,
    is_quantized,
    made_by,
    moved_by,
    weight_of,
)
from rescompile.graph.shared.metadata import ZERO_POINT
from rescompile.manifest import CpuForm

_HALF = 64
"""Largest weight of which two, times 255 each, add up within 16 bits."""


def lower(model: onnx.ModelProto, form: CpuForm = "avx2") -> onnx.ModelProto:
    """``model`` in the ``form`` for a kind of CPU; of a float graph only the axes of Gathers change.

    Executed as it is written, the lowered graph gives the same logits up to the rounding of float sums.

    Raises:
        BackendError: a grouped convolution, whose channels cannot be doubled, needs that in the form avx2.
    """
    model = count_axes_from_the_back(model)
    if all(node.op_type != "QuantizeLinear" for node in model.graph.node):
        return model
    graph = read(unfold_zero_points(model))
    quantize_before_pools(graph)
    if form != "avx2":  # which clips positive and negative parts behind the Pad
        shift_signed(graph)
        pad_behind_quantizer(graph)
    _Lowering(graph, wide=form != "avx2").run()
    spell_clips_apart(graph)
    put_barriers(graph)
    keep_zero_biases(graph)
    return write(graph)


class _Lowering:
    """One pass over ``graph``, which it changes."""

    def __init__(self, graph: gs.Graph, *, wide: bool) -> None:
        self.graph, self.wide = graph, wide
        """``wide``: the CPU adds products in 32 bits."""
        self.constants: dict[str, gs.Constant] = {}
        """Constants that were added, by name."""

    def run(self) -> None:
        for tensor in self.graph.tensors().values():
            if isinstance(tensor, gs.Variable) and tensor not in (*self.graph.inputs, *self.graph.outputs):
                tensor.dtype = tensor.shape = None  # they change
        for node in list(self.graph.nodes):
            if node.op == "QuantizeLinear":
                if cannot_be_negative(node.inputs[0]):
                    self._make_unsigned(node)
                elif not self.wide:
                    self._split_signs(node)

    def _make_unsigned(self, quantize: gs.Node) -> None:
        source, scale = quantize.inputs[0], quantize.inputs[1].values
        full = int(quantize.inputs[2].values) == ZERO_POINT
        zero = self._constant(f"{source.name}.zero_uint8", np.uint8(0))
        quantize.inputs[2] = zero
        for reader in consumers(quantize.outputs[0]):
            if reader.op == "DequantizeLinear":
                reader.inputs[2] = zero
        if full and self.wide:
            return
        bottom = self._constant(f"{source.name}.bottom", np.zeros((), scale.dtype))
        top = self._steps(f"{source.name}.top", 255 if full else 127, scale)
        if full:
            self._halve_weights(quantize)
        activation = self._before_moves(source)
        if made_by(activation) == "Relu" and self._read_once(activation) and keeps_clip(activation):
            # in place of the ReLU OpenVINO fuses it into the convolution; behind the ReLU it would not, and behind a
            # Flatten OpenVINO 2026.4.1 mixes up the scales of a convolution without biases
            activation.inputs[0].op = "Clip"
            activation.inputs[0].inputs.extend([bottom, top])
        else:
            quantize.inputs[0] = self._node("Clip", f"{source.name}.clipped", source, bottom, top)

    def _before_moves(self, tensor: gs.Variable) -> gs.Variable:
        """The tensor that the nodes above ``tensor`` move, where nothing else reads what lies between."""
        while tensor.inputs and self._read_once(tensor):
            (maker,) = tensor.inputs
            moved = moved_by(maker)
            if len(moved) != 1 or len(maker.outputs) != 1:
                break
            (tensor,) = moved
        return tensor

    def _read_once(self, tensor: gs.Variable) -> bool:
        return len(consumers(tensor)) == 1 and not any(tensor is output for output in self.graph.outputs)

    def _halve_weights(self, quantize: gs.Node) -> None:
        for dequantize in consumers(quantize.outputs[0]):
            restored = dequantize.outputs[0]
            pooled = [node.outputs[0] for node in consumers(restored) if node.op == "MaxPool"]
            for tensor in (restored, *pooled):
                wide = _wide_readers(tensor)
                if wide:
                    self._read_twice(tensor, wide)

    def _read_twice(self, tensor: gs.Tensor, readers: list[gs.Node]) -> None:
        twice = self._node("Concat", f"{tensor.name}.twice", tensor, tensor, axis=1)
        for node in readers:
            _require_one_group(node, "has weights of eight bits and reads all 256 values")
            weight = weight_of(node).values
            half = weight >> 1
            _replace_weight(node, np.concatenate([half, weight - half], axis=_input_axis(node)), "halves")
            node.inputs[0] = twice

    def _split_signs(self, quantize: gs.Node) -> None:
        for dequantize in consumers(quantize.outputs[0]):
            wide = _wide_readers(dequantize.outputs[0])
            if not wide:
                continue
            # -(-128) is not an int8: where it occurs, a third group of channels holds the missing 1
            groups = 3 if any((weight_of(node).values == -128).any() for node in wide) else 2
            parts = self._signed_parts(quantize, groups)
            for node in wide:
                _mirror_weight(node, groups)
                node.inputs[0] = parts

    def _signed_parts(self, quantize: gs.Node, groups: int) -> gs.Variable:
        """[max(x, 0), max(-x, 0), ...] along the channels, through Q/DQ as uint8."""
        source, scale = quantize.inputs[:2]
        name, values = source.name, scale.values
        bottom = self._constant(f"{name}.bottom", np.zeros((), values.dtype))
        zero = self._constant(f"{name}.zero_uint8", np.uint8(0))
        top = self._steps(f"{name}.top", 127, values)
        negative_top = self._steps(f"{name}.negative_top", 128, values)
        positive = self._node("Clip", f"{name}.positive", source, bottom, top)
        negated = self._node("Neg", f"{name}.negated", source)
        negative = self._node("Clip", f"{name}.negative", negated, bottom, negative_top)
        parts = self._node("Concat", f"{name}.parts", positive, *[negative] * (groups - 1), axis=1)
        quantized = self._node("QuantizeLinear", f"{name}.held", parts, scale, zero)
        return self._node("DequantizeLinear", f"{name}.restored", quantized, scale, zero)

    def _node(self, op: str, name: str, *inputs: gs.Tensor, **attrs: Any) -> gs.Variable:
        """The output of a new node; both have this name."""
        output = gs.Variable(name)
        self.graph.nodes.append(gs.Node(op, name, attrs, list(inputs), [output]))
        return output

    def _steps(self, name: str, steps: int, scale: NDArray[Any]) -> gs.Constant:
        """The value of ``steps`` steps of ``scale``, as a constant."""
        return self._constant(name, np.asarray(steps * scale.astype(np.float64), scale.dtype))

    def _constant(self, name: str, value: Any) -> gs.Constant:
        if name not in self.constants:
            self.constants[name] = gs.Constant(name, np.asarray(value))
        return self.constants[name]


def _wide_readers(tensor: gs.Tensor) -> list[gs.Node]:
    """Weighted layers that read ``tensor`` and whose weights can leave 16 bits with inputs of all 256 values."""
    return [
        node
        for node in consumers(tensor)
        if node.op in WEIGHTED_OPS
        and is_quantized(node)
        and np.abs(weight_of(node).values.astype(np.int16)).max() > _HALF
    ]


def _mirror_weight(node: gs.Node, groups: int) -> None:
    _require_one_group(node, "reads a tensor that can be negative")
    weight = weight_of(node).values.astype(np.int16)
    mirrored = np.minimum(-weight, 127)
    sides = [weight, mirrored, -weight - mirrored][:groups]
    _replace_weight(node, np.concatenate(sides, axis=_input_axis(node)).astype(np.int8), "mirrored")


def _require_one_group(node: gs.Node, what: str) -> None:
    if node.attrs.get("group", 1) != 1:
        raise BackendError(
            f"'{node.name}' is a grouped INT8 convolution that {what}, which OpenVINO does not compute exactly on "
            "every CPU; build with --precision fp16"
        )


def _replace_weight(node: gs.Node, weight: NDArray[np.int8], what: str) -> None:
    dequantize = node.inputs[1].inputs[0]
    dequantize.inputs[0] = gs.Constant(f"{dequantize.inputs[0].name}.{what}", weight)


def _input_axis(node: gs.Node) -> int:
    """The weight's axis of input channels: 1, except for a Gemm that does not transpose its weight."""
    return 1 if node.op == "Conv" or node.attrs.get("transB") else 0

"""The deployable graph in PyTorch, with weights that can be trained: rounding has the gradient of the identity.

Structure, quantizers and zero points are those of the graph that the builder made, and weights are rounded as the
builder rounds them, so what is trained is what will be deployed:

    weights      scale of the graph: a largest weight that calibration rounded to 126 tells nothing of the step
    activations  scale of the calibration table, or learned from there (Esser et al., 2020)
    beginning    weights of the fp32 network, moved as little as needed to be near the integers of the graph
    pixels       the change of the first weights by ``graph.pixels``, in float64 as there

Weights and biases are kept in steps of their channel. So a learning rate is a part of a step, whatever
the layer's range and however many bits its weights have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from calibration.network import Network, Node, read_nodes
from calibration.operators import WEIGHTED_OPS
from calibration.scales import LEVELS, channel_scales, scales_of

_LOWEST, _HIGHEST = -128, 127
_WITHIN = 0.1
"""Largest distance in steps between a weight and its integer at the beginning. Near a half, the first steps of an
optimizer would round many weights the other way at once, before they know whether that helps."""
Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Factor and offset of every channel."""


def coarse_levels(model: onnx.ModelProto, weight_bits: int) -> dict[str, int]:
    """Largest integer of every layer but the first and the last, whose weights have fewer bits than 8."""
    nodes = [node.name for node in read_nodes(model) if node.op in WEIGHTED_OPS]
    return dict.fromkeys(nodes[1:-1], 2 ** (weight_bits - 1) - 1) if weight_bits < 8 else {}


class _Stored(torch.autograd.Function):
    """Integers that a quantizer stores; inside of int8 the gradient is that without rounding."""

    @staticmethod
    def forward(context: Any, value: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        exact = value / scale
        stored = exact.round().add_(zero).clamp_(_LOWEST, _HIGHEST)
        exact.add_(zero)
        context.save_for_backward(value, scale, exact.clamp(_LOWEST, _HIGHEST) == exact)
        return stored

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        value, scale, inside = context.saved_tensors
        to_value = gradients[0] * inside / scale
        to_scale = -(to_value * value).sum() / scale if context.needs_input_grad[1] else None
        return to_value, to_scale, None


class FakeQuantized(nn.Module):
    """Normalized images [N, C, H, W] to logits, as the deployable graph computes them.

    Args:
        exact: folded fp32 graph, near whose weights the parameters begin.
        quantized: the same with Q/DQ; the parameters begin with its integers and biases.
        pixels: how the first convolution's input was changed from ``exact`` to ``quantized``, if it was.
        shared: tensors whose quantizer has the scale of another one.
        levels: largest integer of a node's weights, where it is not 127.
        learned_scales: whether scales of activations are parameters too.
    """

    def __init__(
        self,
        exact: onnx.ModelProto,
        quantized: onnx.ModelProto,
        *,
        pixels: Affine | None,
        shared: Mapping[str, str],
        levels: Mapping[str, int],
        learned_scales: bool,
    ) -> None:
        super().__init__()
        self._graph = Network(quantized)
        self._pixels, self._levels = pixels, dict(levels)
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
        stored = {
            node.output[0]: (held[node.input[0]], held[node.input[1]])
            for node in quantized.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in held
        }
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in exact.graph.initializer}
        before = {node.name: node for node in exact.graph.node}
        self._weighted = [node for node in self._graph.nodes if node.op in WEIGHTED_OPS]
        first = exact.graph.input[0].name
        self._reads_image = {
            name for name, node in before.items() if node.op_type == "Conv" and node.input[0] == first
        }
        self.weights, self.biases, self.scales = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self._steps: dict[str, NDArray[np.float32]] = {}
        self._units: dict[str, Tensor] = {}
        for node in self._weighted:
            weight, bias = (torch.from_numpy(constants[name].copy()) for name in before[node.name].input[1:3])
            integers, steps = stored.get(node.inputs[1], (None, None))
            if steps is not None:
                self._steps[node.name] = steps
            self._begin(node, weight, bias, integers)
        quantizers = [node for node in self._graph.nodes if node.op == "QuantizeLinear"]
        self._scale_of = {node.inputs[1]: shared.get(node.inputs[0], node.inputs[0]) for node in quantizers}
        for node in quantizers if learned_scales else []:
            tensor = self._scale_of[node.inputs[1]]
            if (
                pixels is None or tensor != quantizers[0].inputs[0]
            ):  # pixels have the scale that rounds nothing
                value = torch.log(self._graph.constants[node.inputs[1]].double()).float()
                self.scales[_key(tensor)] = nn.Parameter(value.reshape(()))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.run(images)

    def run(self, images: Tensor, observe: Callable[[Node, Tensor], None] | None = None) -> Tensor:
        """The logits; ``observe`` is called with each node's output, which is integers for a QuantizeLinear."""
        graph = self._graph
        if next(iter(graph.constants.values())).device != images.device:
            graph.constants = {name: tensor.to(images.device) for name, tensor in graph.constants.items()}
        self._install()
        values = {graph.input: images}
        for index, node in enumerate(graph.nodes):
            values[node.output] = self._step(node, values)
            if observe:
                observe(node, values[node.output])
            for name in graph.finished(index):
                del values[name]
        return values[graph.output]

    def integers(self, node: str) -> Tensor:
        """The int8 weights of a node."""
        most = self._levels.get(node, LEVELS)
        rounded: Tensor = self.weights[_key(node)].detach().round().clamp(-most, most)
        return rounded

    def exact_parameters(self, node: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a node in the fp32 graph, from which the builder makes the node's integers.

        The weights are the rounded ones: biases were trained with them, and would shift with others.
        """
        weight, bias = self._exact(node)
        return weight.detach(), bias.detach()

    @property
    def nodes(self) -> list[str]:
        """Nodes with weights, in the order of execution."""
        return [node.name for node in self._weighted]

    def constant(self, name: str) -> Tensor:
        """A constant of the quantized graph, as it is used now."""
        return self._scale(name).detach() if name in self._scale_of else self._graph.constants[name].detach()

    def weight_scales(self) -> dict[str, NDArray[np.float32]]:
        """Scales [O] of every node with rounded weights."""
        return dict(self._steps)

    def activation_scales(self) -> dict[str, float]:
        """Scale of every quantized activation by tensor."""
        return {tensor: float(self._scale(name).detach()) for name, tensor in self._scale_of.items()}

    @torch.no_grad()
    def _begin(self, node: Node, weight: Tensor, bias: Tensor, integers: NDArray[np.int8] | None) -> None:
        """Make the parameters of a node: those of the fp32 graph, or such that are rounded to ``integers``."""
        steps = channel_scales(weight.numpy()) if integers is None else self._steps[node.name]
        unit = torch.from_numpy(steps.copy()).reshape(-1, *[1] * (weight.ndim - 1))
        if integers is None:
            values = weight / unit
        else:
            if self._pixels is not None and node.name in self._reads_image:
                unit = unit * torch.from_numpy(self._pixels[0]).float()[:, None, None]
            held = torch.from_numpy(integers.astype(np.float32))
            values = (weight / unit).clamp(held - _WITHIN, held + _WITHIN)
            _, change = self._on_pixels(node.name, held * unit, torch.zeros_like(bias))
            bias = self._graph.constants[node.inputs[2]] - change
        self._units[node.name] = unit
        self.weights[_key(node.name)] = nn.Parameter(values)
        self.biases[_key(node.name)] = nn.Parameter(bias / unit.flatten(1)[:, 0])

    def _install(self) -> None:
        """Put the parameters into the graph, rounded."""
        for node in self._weighted:
            weight, bias = self._on_pixels(node.name, *self._exact(node.name))
            self._graph.constants[node.inputs[1]] = weight
            self._graph.constants[node.inputs[2]] = bias

    def _exact(self, node: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of a node in the fp32 graph; the weight is rounded, its gradient passes."""
        values, bias = self.weights[_key(node)], self.biases[_key(node)]
        unit = self._units[node].to(values.device)
        if node in self._steps:
            values = values + (self.integers(node) - values).detach()
        return values * unit, bias * unit.flatten(1)[:, 0]

    def _on_pixels(self, node: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias for the input that the quantized graph gives the node."""
        if self._pixels is None or node not in self._reads_image:
            return weight, bias
        factor, offset = (torch.from_numpy(values).to(weight.device) for values in self._pixels)
        changed = weight.double() / factor[:, None, None]
        return changed.float(), (bias.double() - changed.sum((2, 3)) @ offset).float()

    def _step(self, node: Node, values: dict[str, Tensor]) -> Tensor:
        if node.op == "QuantizeLinear":
            scale, zero = self._scale(node.inputs[1]), self._graph.constants[node.inputs[2]].float()
            stored: Tensor = _Stored.apply(values[node.inputs[0]], scale, zero)  # type: ignore[no-untyped-call]
            return stored
        if node.op == "DequantizeLinear" and node.inputs[0] in values:
            zero = self._graph.constants[node.inputs[2]].float()
            restored: Tensor = (values[node.inputs[0]] - zero) * self._scale(node.inputs[1])
            return restored
        return self._graph.step(node, values)

    def _scale(self, name: str) -> Tensor:
        fixed = self._graph.constants[name]
        tensor = self._scale_of[name]
        if _key(tensor) not in self.scales:
            return fixed
        exact = self.scales[_key(tensor)].exp()
        # one that FP16 holds, as in the table
        held = scales_of(exact.detach().cpu().double().numpy().reshape(1) * LEVELS)
        scale: Tensor = exact + (torch.from_numpy(held).to(exact.device)[0] - exact).detach()
        return scale


def _key(name: str) -> str:
    """A node's name as that of a parameter, which has no dots."""
    return name.replace(".", "/")

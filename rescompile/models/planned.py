"""Residual and plain networks of any form, made from weights and a plan of how they are joined.

    x -> stem -> [max pool] -> blocks -> mean -> head
    post-activation block:  y = relu(normK(convK(… relu(norm1(conv1(x))))) + shortcut(x))
    pre-activation block:   y = convK(relu(normK(… conv1(relu(norm1(x)))))) + shortcut(x)

In a pre-activation network every norm stands behind a convolution of the chain too: it is applied by the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["half", "end"]


@dataclass(frozen=True, eq=False)
class NormWeights:
    """A batch norm's parameters and statistics."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor


@dataclass(frozen=True, eq=False)
class ConvWeights:
    """A convolution, and the norm behind it in the chain."""

    weight: Tensor
    bias: Tensor | None
    norm: NormWeights | None
    groups: int = 1

    @property
    def kernel(self) -> int:
        """Side of the kernel."""
        return int(self.weight.shape[2])

    @property
    def inputs(self) -> int:
        """Input channels."""
        return int(self.weight.shape[1]) * self.groups

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.weight.shape[0])


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The weights of one block."""

    convs: tuple[ConvWeights, ...]
    shortcut: ConvWeights | None
    pooled: bool
    """Whether the shortcut averages before its convolution (ResNet-D)."""
    gate: tuple[ConvWeights, ConvWeights] | None
    """Squeeze-and-excitation."""
    stride: int


@dataclass(frozen=True, eq=False)
class HeadLayer:
    """A fully connected layer or a norm of the head."""

    linear: tuple[Tensor, Tensor] | None
    norm: NormWeights | None
    activated: bool
    """Whether something without weights follows that may be a ReLU."""


@dataclass(frozen=True, eq=False)
class Plan:
    """All weights of a network, by place."""

    stem: tuple[ConvWeights, ...]
    stem_stride: int
    maxpool: bool
    blocks: tuple[BlockPlan, ...]
    head: tuple[HeadLayer, ...]
    """Empty where the network ends with features."""
    concat_pool: bool
    """Whether the head reads maxima and means (fastai)."""

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self.stem[0].inputs

    @property
    def image_size(self) -> int:
        """The usual side of the image for such a stem."""
        return 224 if self.maxpool else 32


@dataclass(frozen=True)
class Reading:
    """Properties that the weights of a plan do not show."""

    residual: bool = True
    padding: Padding = "half"
    """Place of the zero channels where a block without projection widens."""
    pre_activation: bool = False
    stride_later: bool = False
    """Whether the stride is not on the usual convolution of a block but on the other candidate."""
    head_relu: bool = True


class _ConvNorm(nn.Module):
    def __init__(self, weights: ConvWeights, stride: int, *, with_norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            weights.inputs, weights.outputs, weights.kernel, stride, weights.kernel // 2,
            groups=weights.groups, bias=weights.bias is not None,
        )  # fmt: skip
        _fill(self.conv.weight, weights.weight)
        if weights.bias is not None:
            assert self.conv.bias is not None
            _fill(self.conv.bias, weights.bias)
        self.norm = _norm(weights.norm) if with_norm and weights.norm is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


class _Gate(nn.Module):
    def __init__(self, first: ConvWeights, second: ConvWeights) -> None:
        super().__init__()
        self.first, self.second = _ConvNorm(first, 1), _ConvNorm(second, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.second(F.relu(self.first(x.mean((2, 3), keepdim=True)))))


class _Block(nn.Module):
    def __init__(self, plan: BlockPlan, reading: Reading, before: NormWeights | None) -> None:
        super().__init__()
        self.pre, self.residual, self.padding = reading.pre_activation, reading.residual, reading.padding
        at = strided(plan, later=reading.stride_later)
        strides = [plan.stride if index == at else 1 for index in range(len(plan.convs))]
        self.convs = nn.ModuleList(
            _ConvNorm(conv, stride, with_norm=not self.pre)
            for conv, stride in zip(plan.convs, strides, strict=True)
        )
        self.norms = nn.ModuleList(
            _norm(norm) for norm in (before, *(conv.norm for conv in plan.convs[:-1])) if self.pre and norm
        )
        self.gate = nn.Identity() if plan.gate is None else _Gate(*plan.gate)
        self.stride, self.extra = plan.stride, plan.convs[-1].outputs - plan.convs[0].inputs
        self.shortcut: nn.Module | None = None
        if plan.shortcut is not None:
            stride = 1 if plan.pooled else plan.stride
            pool = nn.AvgPool2d(plan.stride, plan.stride, ceil_mode=True, count_include_pad=False)
            pooled = plan.pooled and plan.stride > 1
            self.shortcut = nn.Sequential(*([pool] if pooled else []), _ConvNorm(plan.shortcut, stride))

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            return self._pre_activated(x)
        y = x
        for index, conv in enumerate(self.convs):
            y = conv(y)
            if index + 1 < len(self.convs):
                y = F.relu(y)
        y = self.gate(y)
        return F.relu(y + self._skip(x) if self.residual else y)

    def _pre_activated(self, x: Tensor) -> Tensor:
        first = y = F.relu(self.norms[0](x))
        for index, conv in enumerate(self.convs):
            y = conv(y if index == 0 else F.relu(self.norms[index](y)))
        gated: Tensor = self.gate(y)
        return gated + self._skip(x if self.shortcut is None else first)

    def _skip(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            skip: Tensor = self.shortcut(x)
            return skip
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.extra:
            before = self.extra // 2 if self.padding == "half" else 0
            x = F.pad(x, (0, 0, 0, 0, before, self.extra - before))
        return x


class PlannedNetwork(nn.Module):
    """The network of a plan in one reading, in eval mode: normalized images [N, C, H, W] to logits or features."""

    def __init__(self, plan: Plan, reading: Reading) -> None:
        super().__init__()
        pre = reading.pre_activation
        last = len(plan.stem) - 1
        self.pre = pre
        self.stem = nn.ModuleList(
            _ConvNorm(conv, plan.stem_stride if index == 0 else 1, with_norm=not (pre and index == last))
            for index, conv in enumerate(plan.stem)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1) if plan.maxpool else nn.Identity()
        befores = [plan.stem[-1].norm, *(block.convs[-1].norm for block in plan.blocks)]
        self.blocks = nn.ModuleList(
            _Block(block, reading, before) for block, before in zip(plan.blocks, befores[:-1], strict=True)
        )
        self.last_norm = _norm(befores[-1]) if pre and befores[-1] is not None else None
        self.concat_pool = plan.concat_pool
        layers: list[nn.Module] = []
        for layer in plan.head:
            if layer.norm is not None:
                layers.append(_norm(layer.norm, of_vectors=True))
            if layer.linear is not None:
                layers.append(_linear(*layer.linear))
            if layer.activated and reading.head_relu:
                layers.append(nn.ReLU())
        self.head = nn.Sequential(*layers)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for index, conv in enumerate(self.stem):
            x = conv(x)
            if not (self.pre and index + 1 == len(self.stem)):
                x = F.relu(x)
        x = self.maxpool(x)
        for block in self.blocks:
            x = block(x)
        if self.last_norm is not None:
            x = F.relu(self.last_norm(x))
        pooled = F.adaptive_avg_pool2d(x, 1)
        if self.concat_pool:
            pooled = torch.cat([F.adaptive_max_pool2d(x, 1), pooled], 1)
        answer: Tensor = self.head(torch.flatten(pooled, 1))
        return answer


def strided(plan: BlockPlan, *, later: bool = False) -> int:
    """The convolution with the block's stride.

    It is the one that widens a basic block, and the 3x3 one of a bottleneck; ``later`` takes the other candidate.
    """
    kernels = [conv.kernel for conv in plan.convs]
    if 1 in kernels:
        return 0 if later else next((index for index, kernel in enumerate(kernels) if kernel > 1), 0)
    widening = [index for index, conv in enumerate(plan.convs) if conv.inputs != conv.outputs]
    usual = widening[0] if widening else 0
    return len(plan.convs) - 1 - usual if later else usual


def _norm(weights: NormWeights, *, of_vectors: bool = False) -> nn.Module:
    norm = (nn.BatchNorm1d if of_vectors else nn.BatchNorm2d)(len(weights.weight))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for target, values in (
        (norm.weight, weights.weight),
        (norm.bias, weights.bias),
        (norm.running_mean, weights.mean),
        (norm.running_var, weights.var),
    ):
        _fill(target, values)
    return norm


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    _fill(layer.weight, weight)
    _fill(layer.bias, bias)
    return layer


def _fill(target: Tensor, values: Tensor) -> None:
    target.data.copy_(values)

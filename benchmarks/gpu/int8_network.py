"""A bottleneck ResNet in int8 out of the fused operations, with scales that one random batch gives.

The scales are plausible and not calibrated: this network is for timing, and its answers are compared with the fp32
ones only to see that they belong to the same network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.chain import Folded, chain, chain_fits
from fused_kernels.ops.head import head_scales, pool_fc_int8
from fused_kernels.ops.inference import conv_int8, requantization
from fused_kernels.ops.stem import stem_inference
from rescompile.models.resnet import Bottleneck, ResNet

STEPS = 127.0


@dataclass(frozen=True)
class Layer:
    """One convolution, its numbers in units of its result."""

    folded: Folded
    conv: Conv
    residual_scale: float | None = None

    def run(self, x: Tensor, *, relu: bool = True, residual: Tensor | None = None) -> Tensor:
        """Run the convolution in a launch of its own."""
        assert self.folded.scale is not None
        return conv_int8(
            x, self.folded.w, self.folded.scale, self.folded.bias, self.conv,
            relu=relu, residual=residual, residual_scale=self.residual_scale,
        )  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One bottleneck."""

    conv1: Layer
    conv2: Layer
    conv3: Layer
    projection: Layer | None

    @property
    def width(self) -> int:
        """Channels of the 3x3."""
        return self.conv2.folded.w.shape[0]

    def shortcut(self, x: Tensor) -> Tensor:
        """The tensor that is added to the main path."""
        return x if self.projection is None else self.projection.run(x, relu=False)


class Int8Network:
    """The whole network, from int8 images to fp32 logits."""

    def __init__(self, network: ResNet, x: Tensor) -> None:
        """Quantize ``network``, which is fp32 with its batch norms folded, by its activations on ``x``."""
        with torch.no_grad():
            self.image_scale = _scale_of(x)
            self._quantize(network, x)

    def _quantize(self, network: ResNet, x: Tensor) -> None:
        y = F.relu(network.conv1(x))
        scale = _scale_of(y)
        self.stem = _layer(network.conv1, self.image_scale, scale)
        assert network.maxpool is not None
        y = network.maxpool(y)
        self.blocks: list[Block] = []
        for _, block in network.blocks():
            assert isinstance(block, Bottleneck)
            y, scale = self._quantize_block(block, y, scale)
        pooled = y.mean(dim=(2, 3))
        weight = network.fc.weight
        w_scale = weight.abs().amax(1) / STEPS
        s_pool = _scale_of(pooled)
        self.pool_scale, self.fc_scale = head_scales(scale, y.shape[2] * y.shape[3], s_pool, w_scale)
        self.fc = _quantized(weight, w_scale[:, None])
        self.fc_bias = network.fc.bias.float()

    def _quantize_block(self, block: Bottleneck, x: Tensor, s_x: float) -> tuple[Tensor, float]:
        h1 = F.relu(block.conv1(x))
        h2 = F.relu(block.conv2(h1))
        shortcut = x if block.downsample is None else block.downsample(x)
        s_shortcut = s_x if block.downsample is None else _scale_of(shortcut)
        z = F.relu(block.conv3(h2) + shortcut)
        s_1, s_2, s_z = _scale_of(h1), _scale_of(h2), _scale_of(z)
        projection = (
            None if block.downsample is None else _layer(block.downsample.get_submodule("0"), s_x, s_shortcut)
        )
        self.blocks.append(
            Block(
                _layer(block.conv1, s_x, s_1),
                _layer(block.conv2, s_1, s_2),
                _layer(block.conv3, s_2, s_z, s_shortcut),
                projection,
            )
        )
        return z, s_z

    def image(self, x: Tensor) -> Tensor:
        """fp32 images as this network takes them."""
        return _quantized(x, self.image_scale)

    def __call__(self, image: Tensor) -> Tensor:
        """Int8 images [N, 3, H, W] to fp32 logits."""
        stem = self.stem.folded
        x = stem_inference(image, stem.w, stem.bias, self.stem.conv, scale=stem.scale)
        first: Tensor | None = None  # a block's first convolution, where the chain before has run it
        for index, block in enumerate(self.blocks):
            y = block.conv1.run(x) if first is None else first
            following = self._following(index)
            if self._chains(block, following):
                conv1 = None if following is None else following.conv1.folded
                x, first = chain(
                    y, block.conv2.folded, block.conv3.folded, block.shortcut(x), conv1,
                    stride=block.conv2.conv.stride, residual_scale=block.conv3.residual_scale,
                )  # fmt: skip
            else:
                x, first = block.conv3.run(block.conv2.run(y), residual=block.shortcut(x)), None
        return pool_fc_int8(x, self.pool_scale, self.fc, self.fc_scale, self.fc_bias)

    def _chains(self, block: Block, following: Block | None) -> bool:
        return chain_fits(block.width, torch.int8, None if following is None else following.width)

    def _following(self, index: int) -> Block | None:
        """The next block if its first convolution can run in this block's chain, else None."""
        if index + 1 == len(self.blocks):
            return None
        following = self.blocks[index + 1]
        fits = self._chains(following, None) and self._chains(self.blocks[index], following)
        return following if fits else None


def _layer(conv: nn.Module, s_x: float, s_out: float, s_residual: float | None = None) -> Layer:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    weight = conv.weight.detach()
    s_w = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / STEPS
    numbers = requantization(s_x, s_w, s_out, conv.bias.detach(), s_residual)
    folded = Folded(_quantized(weight, s_w[:, None, None, None]), numbers.bias, numbers.scale)
    padding = conv.padding[0]
    assert isinstance(padding, int)
    window = Conv(conv.kernel_size[0], conv.kernel_size[1], conv.stride[0], padding)
    return Layer(folded, window, numbers.residual_scale)


def _scale_of(x: Tensor) -> float:
    return max(float(x.abs().amax()), 1e-12) / STEPS


def _quantized(x: Tensor, scale: Tensor | float) -> Tensor:
    q = torch.round(x / scale).clamp(-127, 127).to(torch.int8)
    return q.contiguous(memory_format=torch.channels_last) if q.ndim == 4 else q

"""ImageNet ResNets as shapes alone: what each convolution reads and writes, without tensors."""

from __future__ import annotations

from dataclasses import dataclass

from fused_kernels.errors import Unsupported
from fused_kernels.operands.geometry import Conv
from fused_kernels.specification import Block, Chain, Layer

EPS = 1e-5


@dataclass(frozen=True)
class ConvShape:
    """A convolution from [n, c, h, w] to [n, k, p, q]; sizes are elements of one image."""

    c: int
    k: int
    conv: Conv
    h: int
    w: int

    @property
    def plane(self) -> tuple[int, int]:
        """[p, q]."""
        return self.conv.output_size(self.h, self.w)

    @property
    def x(self) -> int:
        """Elements of the input."""
        return self.c * self.h * self.w

    @property
    def x_touched(self) -> int:
        """Elements of the input that a window covers: a 1x1 window of stride 2 leaves three pixels of four alone."""
        conv, (p, q) = self.conv, self.plane
        rows = touched(self.h, p, conv.r, stride=conv.stride, base=-conv.padding)
        cols = touched(self.w, q, conv.s, stride=conv.stride, base=-conv.padding)
        return self.c * rows * cols

    @property
    def y(self) -> int:
        """Elements of the output."""
        p, q = self.plane
        return self.k * p * q

    @property
    def weight(self) -> int:
        """Elements of the weight."""
        return self.k * self.c * self.conv.r * self.conv.s


@dataclass(frozen=True)
class BlockShape:
    """A residual block; ``name`` is its torchvision name, such as ``layer2.0``."""

    name: str
    main: tuple[ConvShape, ...]
    projection: ConvShape | None = None

    @property
    def layers(self) -> tuple[ConvShape, ...]:
        """The main path's convolutions, then the projection's."""
        return self.main if self.projection is None else (*self.main, self.projection)

    @property
    def weights(self) -> int:
        """Elements of all weights."""
        return sum(layer.weight for layer in self.layers)

    @property
    def specification(self) -> Block:
        """The specification that the fused operators get, with every batch norm in training mode."""
        layers = tuple(Layer(layer.conv, EPS, True, True, True) for layer in self.layers)
        if self.projection is None:
            return Block(layers)
        return Block(layers[:-1], "projection", layers[-1], self.projection.conv.stride)


@dataclass(frozen=True)
class NetworkShape:
    """Stem with max pool, stages of blocks, global average pool and classifier."""

    name: str
    stem: ConvShape
    stages: tuple[tuple[BlockShape, ...], ...]
    classes: int = 1000

    @property
    def blocks(self) -> tuple[BlockShape, ...]:
        """All blocks in order."""
        return tuple(block for stage in self.stages for block in stage)

    @property
    def pooled(self) -> int:
        """Elements of the max pool's output, which the first block takes."""
        return self.blocks[0].main[0].x

    @property
    def last(self) -> ConvShape:
        """The last convolution of the main path."""
        return self.blocks[-1].main[-1]

    @property
    def classifier(self) -> int:
        """Elements of the classifier's weight."""
        return self.classes * self.last.k

    @property
    def parameters(self) -> int:
        """Weights, batch norms' gamma and beta, and the classifier's bias."""
        layers = [self.stem, *(layer for block in self.blocks for layer in block.layers)]
        return sum(layer.weight + 2 * layer.k for layer in layers) + self.classifier + self.classes


def touched(size: int, points: int, taps: int, *, stride: int = 1, base: int = 0, step: int = 1) -> int:
    """Count the numbers of ``range(size)`` that are ``point * stride + base + tap * step`` for some point and tap."""
    met = {point * stride + base + tap * step for point in range(points) for tap in range(taps)}
    return sum(0 <= at < size for at in met)


def chain_of(stage: tuple[BlockShape, ...]) -> Chain:
    """The fused operators' description of a stage."""
    return Chain(tuple(block.specification for block in stage))


DEPTHS = {
    "resnet18": (1, (2, 2, 2, 2)),
    "resnet34": (1, (3, 4, 6, 3)),
    "resnet50": (4, (3, 4, 6, 3)),
    "resnet101": (4, (3, 4, 23, 3)),
    "resnet152": (4, (3, 8, 36, 3)),
}
"""Expansion (1 for basic blocks, 4 for bottlenecks) and blocks of each stage."""


def resnet(name: str, size: int = 224) -> NetworkShape:
    """torchvision's ResNet of that name for images of ``size`` x ``size``.

    Raises:
        Unsupported: no such network.
    """
    if name not in DEPTHS:
        raise Unsupported(f"no shapes for {name!r}: choose one of {', '.join(DEPTHS)}")
    expansion, depths = DEPTHS[name]
    stem = ConvShape(3, 64, Conv(7, 7, 2, 3), size, size)
    h, w = Conv(3, 3, 2, 1).output_size(*stem.plane)
    channels = 64
    stages = []
    for number, depth in enumerate(depths, 1):
        width = 32 << number
        stage = []
        for index in range(depth):
            stride = 2 if index == 0 and number > 1 else 1
            shape = block_shape(f"layer{number}.{index}", channels, width, expansion, stride, h, w)
            stage.append(shape)
            channels, (h, w) = width * expansion, shape.main[-1].plane
        stages.append(tuple(stage))
    return NetworkShape(name, stem, tuple(stages))


def block_shape(
    name: str, channels: int, width: int, expansion: int, stride: int, h: int, w: int
) -> BlockShape:
    """A basic block (expansion 1) or a bottleneck on [n, channels, h, w], with a projection where the shape changes."""
    out = width * expansion
    p, q = Conv(3, 3, stride, 1).output_size(h, w)
    if expansion == 1:
        main: tuple[ConvShape, ...] = (
            ConvShape(channels, width, Conv(3, 3, stride, 1), h, w),
            ConvShape(width, width, Conv(3, 3, 1, 1), p, q),
        )
    else:
        main = (
            ConvShape(channels, width, Conv(1, 1), h, w),
            ConvShape(width, width, Conv(3, 3, stride, 1), h, w),
            ConvShape(width, out, Conv(1, 1), p, q),
        )
    if stride == 1 and channels == out:
        return BlockShape(name, main)
    return BlockShape(name, main, ConvShape(channels, out, Conv(1, 1, stride), h, w))

"""Every training operation of a bottleneck ResNet, at each of its distinct shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu import torch_peers as peers
from benchmarks.gpu.layers import Layer, distinct_layers
from benchmarks.gpu.networks import Scale
from benchmarks.gpu.op_case import OpCase, Operands
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import convolution, passes, statistics, stem
from fused_kernels.ops.image import pack

STEM = Conv(7, 7, 2, 3)
STEM_BACKWARD_TILE = 32
"""Rows of a tile of the max pool's backward pass, whose partial sums are the most there are."""


@dataclass(frozen=True)
class OpSpec:
    """An operation whose operands are made when they are needed."""

    name: str
    dtype: torch.dtype
    make: Callable[[int, torch.device], OpCase]
    """Makes the case for a batch size and a device, which may be meta."""
    count: int = 1
    """Number of times that the network's step has it."""

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}"


def training_specs(scale: Scale, dtype: torch.dtype) -> list[OpSpec]:
    """fprop, dgrad and wgrad of every distinct convolution, the stem, then the passes between them."""
    specs = []
    for layer in distinct_layers(scale):
        for kind, make in (("fprop", _fprop), ("dgrad", _dgrad), ("wgrad", _wgrad)):
            specs.append(_spec(f"{layer.name} {kind}", layer, dtype, make))
    return specs + _stem_specs(scale, dtype) + _pass_specs(scale, dtype)


def _spec(
    name: str, layer: Layer, dtype: torch.dtype, make: Callable[[Layer, int, Operands], OpCase]
) -> OpSpec:
    return OpSpec(name, dtype, lambda n, device: make(layer, n, Operands(device, dtype)), layer.count)


def _has_prologue(layer: Layer) -> bool:
    return layer.role in {"conv2", "conv3"}


def _fprop(layer: Layer, n: int, new: Operands) -> OpCase:
    x = new.activation(n, layer.c, layer.h)
    w = new.weight(layer.k, layer.c, layer.conv.r, layer.conv.s)
    vectors = new.vectors(layer.c) if _has_prologue(layer) else None
    args = (x, w, layer.conv, vectors)
    return OpCase(
        convolution.conv_moments, args, flops=layer.flops(n), peers=lambda: peers.fprop_peers(*args)
    )


def _wgrad(layer: Layer, n: int, new: Operands) -> OpCase:
    x, dy = new.activation(n, layer.c, layer.h), new.activation(n, layer.k, layer.p)
    vectors = new.vectors(layer.c) if _has_prologue(layer) else None
    args = (x, dy, layer.conv, vectors)
    return OpCase(convolution.wgrad, args, flops=layer.flops(n), peers=lambda: peers.wgrad_peers(*args))


def _dgrad(layer: Layer, n: int, new: Operands) -> OpCase:
    if layer.role == "projection":
        return _projection_dgrad(layer, n, new)
    dy = new.activation(n, layer.k, layer.p)
    w = new.weight(layer.k, layer.c, layer.conv.r, layer.conv.s)
    if _has_prologue(layer):
        y, vectors = new.activation(n, layer.c, layer.h), new.vectors(layer.c)
        return OpCase(
            convolution.dgrad_drelu,
            (dy, w, layer.conv, y, vectors),
            flops=layer.flops(n),
            moments=False,
            peers=lambda: peers.dgrad_peers(dy, w, layer.conv, y, vectors),
        )
    # a strided projection's own dgrad is dense on the pixels that it meets; torch's is full of zeros between them
    shortcut = new.activation(n, layer.c, -(-layer.h // layer.stride))
    x = new.activation(n, layer.c, layer.h, relu=True)
    if layer.first:
        return OpCase(
            convolution.dgrad_shortcut,
            (dy, w, layer.conv, tuple(x.shape), shortcut, layer.stride),
            flops=layer.flops(n),
            peers=lambda: peers.input_gradient_peers(dy, w, layer.conv, x, _like(shortcut, x)),
        )
    y, vectors = new.activation(n, layer.c, layer.h), new.vectors(layer.c)
    d, d_vectors = (y.flip(0), new.vectors(layer.c)) if layer.after_projection else (None, None)
    return OpCase(
        convolution.dgrad_block,
        (dy, w, layer.conv, shortcut, layer.stride, x, y, vectors, d, d_vectors),
        flops=layer.flops(n),
        moments=False,
        peers=lambda: peers.dgrad_peers(dy, w, layer.conv, y, vectors, _like(shortcut, x)),
    )


def _like(shortcut: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The shortcut's gradient as torch would have it, in the shape of ``x``."""
    return shortcut if shortcut.shape == x.shape else x.flip(0)


def _projection_dgrad(layer: Layer, n: int, new: Operands) -> OpCase:
    """A strided 1x1 reads every second pixel; its dgrad is dense on those, and spread by the next epilogue."""
    dy, w = new.activation(n, layer.k, layer.p), new.weight(layer.k, layer.c, 1, 1)
    dense, size = Conv(1, 1), (n, layer.c, layer.p, layer.p)
    x = new.activation(n, layer.c, layer.p)
    return OpCase(
        convolution.dgrad_shortcut,
        (dy, w, dense, size, None),
        flops=layer.flops(n),
        peers=lambda: peers.input_gradient_peers(dy, w, dense, x, None),
    )


def _stem_specs(scale: Scale, dtype: torch.dtype) -> list[OpSpec]:
    k, image = scale.widths[0], scale.image
    p = STEM.output_size(image, image)[0]

    def conv(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        x, w = new.activation(n, 3, image), new.weight(k, 3, 7, 7)
        flops = 2.0 * n * p * p * k * 147
        return OpCase(_stem_conv, (x, w), flops=flops, peers=lambda: peers.fprop_peers(x, w, STEM, None))

    def pool(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        y, vectors = new.activation(n, k, p), new.vectors(k)
        return OpCase(_stem_pool, (y, vectors), peers=lambda: peers.stem_pool_peers(y, vectors))

    def pooled(n: int, device: torch.device) -> tuple[Tensor, ...]:
        new = Operands(device, dtype)
        y, vectors = new.activation(n, k, p), new.vectors(k)
        z, index = stem.stem_pool(y, vectors)
        return new.activation(n, k, z.shape[2]), index, y, vectors

    def pool_sums(n: int, device: torch.device) -> OpCase:
        return OpCase(stem.stem_pool_sums, pooled(n, device), moments=False)

    def pool_backward(n: int, device: torch.device) -> OpCase:
        coefficients = Operands(device, torch.float32).normal(3, k)
        return OpCase(stem.stem_pool_backward, (*pooled(n, device), coefficients))

    def wgrad(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        x, dy = new.activation(n, 3, image), new.activation(n, k, p)
        packed = pack(x, STEM, dtype)
        flops = 2.0 * n * p * p * k * 147
        return OpCase(
            stem.stem_wgrad,
            (packed, dy, STEM, 3),
            flops=flops,
            peers=lambda: peers.wgrad_peers(x, dy, STEM, None),
        )

    makers = {
        "conv": conv,
        "pool": pool,
        "pool sums": pool_sums,
        "pool backward": pool_backward,
        "wgrad": wgrad,
    }
    specs = [OpSpec(f"stem {name}", dtype, make) for name, make in makers.items()]
    return specs + _statistics_of("stem", k, p, 1, backward_tile=STEM_BACKWARD_TILE)


def _stem_conv(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, Partials]:
    y, partials, _ = stem.stem_conv_moments(x, w, STEM)
    return y, partials


def _stem_pool(y: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    # the places of equal values differ between dtypes, so only the values are compared; the backward pass checks places
    return stem.stem_pool(y, vectors)[0]


def _pass_specs(scale: Scale, dtype: torch.dtype) -> list[OpSpec]:
    specs = []
    h = scale.image // 4
    for stage, (width, blocks) in enumerate(zip(scale.widths, scale.blocks, strict=True), start=1):
        specs += _passes_of(f"layer{stage}", 4 * width, width, h, blocks, dtype)
        h = -(-h // 2)
    return specs


def _passes_of(stage: str, c: int, width: int, h: int, blocks: int, dtype: torch.dtype) -> list[OpSpec]:
    def join(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        args = (new.activation(n, c, h), new.vectors(c), new.activation(n, c, h), None)
        return OpCase(passes.join, args, peers=lambda: peers.join_peers(*args))

    def join_projection(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        args = (new.activation(n, c, h), new.vectors(c), new.activation(n, c, h), new.vectors(c))
        return OpCase(passes.join, args, peers=lambda: peers.join_peers(*args))

    def entry(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        dz, z, y = new.activation(n, c, h), new.activation(n, c, h, relu=True), new.activation(n, c, h)
        args = (dz, z, y, new.vectors(c))
        return OpCase(passes.entry, args, moments=False, peers=lambda: peers.entry_peers(*args))

    def bn_backward(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        g, y, vectors = new.activation(n, c, h), new.activation(n, c, h), new.vectors(c)
        args = (g, y, vectors, new.normal(3, c))
        return OpCase(passes.bn_backward, args, peers=lambda: peers.bn_backward_peers(g, y, vectors))

    makers = [(join, blocks - 1), (join_projection, 1), (entry, 1), (bn_backward, blocks)]
    specs = [OpSpec(f"{stage} {make.__name__}", dtype, make, count) for make, count in makers if count]
    return [
        *specs,
        *_statistics_of(stage, width, h, 2 * blocks),
        *_statistics_of(f"{stage} wide", c, h, blocks),
    ]


def _statistics_of(
    name: str, c: int, h: int, count: int, *, forward_tile: int = 128, backward_tile: int = 128
) -> list[OpSpec]:
    """Partial sums to vectors: few bytes, yet one after the other where there are many tiles."""

    def finalize(n: int, device: torch.device) -> OpCase:
        new = Operands(device, torch.float32)
        running = (new.normal(c), new.normal(c).abs())
        partials = _partials(new, n * h * h, c, forward_tile)
        return OpCase(statistics.finalize, (partials, new.normal(c), new.normal(c), 1e-5, running, 0.1))

    def sums(n: int, device: torch.device) -> OpCase:
        new = Operands(device, torch.float32)
        return OpCase(statistics.sums, (_partials(new, n * h * h, c, backward_tile),))

    return [OpSpec(f"{name} {make.__name__}", torch.float32, make, count) for make in (finalize, sums)]


def _partials(new: Operands, count: int, c: int, per_tile: int) -> Partials:
    """Tile means near zero and tile M2s near what ``per_tile`` unit normal numbers have."""
    tiles = -(-count // per_tile)
    rows = torch.stack([0.1 * new.normal(tiles, c), per_tile + new.normal(tiles, c)])
    return Partials(rows, per_tile, count)

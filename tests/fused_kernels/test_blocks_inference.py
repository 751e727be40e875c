"""Folded blocks: through the chain kernel, without it, and mixed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_kernels.blocks.inference import infer, without_chains
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.specification import Block, Chain, Layer
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import activation, normal, weight
from tests.fused_kernels.tolerances import distance


def layer(kernel: int, stride: int = 1) -> Layer:
    return Layer(Conv(kernel, kernel, stride, kernel // 2), 1e-5, False, True, False)


IDENTITY = Block((layer(1), layer(3), layer(1)))
PROJECTION = Block((layer(1), layer(3, 2), layer(1)), "projection", layer(1, 2), 2)
STRIDE_FIRST = Block((layer(1, 2), layer(3), layer(1)), "projection", layer(1, 2), 2)
BASIC = Block((layer(3), layer(3)))
PAD = Block((layer(3, 2), layer(3)), "pad", None, 2, (0, 32))

# blocks, (K, C) of their layers, and how many chain and convolution kernels they take
CASES: dict[str, tuple[list[Block], list[tuple[int, int]], dict[str, int]]] = {
    "a stage": (
        [PROJECTION, IDENTITY, IDENTITY],
        [(16, 32), (16, 16), (64, 16), (64, 32), (16, 64), (16, 16), (64, 16), (16, 64), (16, 16), (64, 16)],
        {"chain": 3, "conv": 2},
    ),
    "a width that does not fit": (
        [PROJECTION, IDENTITY],
        [(24, 32), (24, 24), (96, 24), (96, 32), (24, 96), (24, 24), (96, 24)],
        {"chain": 0, "conv": 7},
    ),
    "a chain, then a stride on the 1x1": (
        [IDENTITY, STRIDE_FIRST],
        [(16, 32), (16, 16), (32, 16), (16, 32), (16, 16), (64, 16), (64, 32)],
        {"chain": 2, "conv": 3},
    ),
    "a chain, then basic blocks": (
        [IDENTITY, BASIC, PAD],
        [(16, 32), (16, 16), (32, 16), (32, 32), (32, 32), (64, 32), (64, 64)],
        {"chain": 1, "conv": 5},
    ),
}


def tensors(name: str, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor], Chain]:
    blocks, channels, _ = CASES[name]
    chain = Chain(tuple(blocks))
    weights = [
        weight(k, c, lay.conv.r, lay.conv.s, dtype)
        for (k, c), lay in zip(channels, chain.layers, strict=True)
    ]
    return activation(1, 32, 7, 5, dtype), weights, [normal(k) for k, _ in channels], chain


@pytest.mark.parametrize("name", CASES)
def test_chains_and_convolutions_agree_with_float64(name: str, small_tiles: Tile) -> None:
    x, weights, biases, chain = tensors(name, torch.float16)
    wide = infer(x.double(), [w.double() for w in weights], [b.double() for b in biases], chain)
    with recording() as launches:
        result = infer(x, weights, biases, chain)
    kernels = [launch.kernel.split(".")[0] for launch in launches]
    assert {kind: kernels.count(kind) for kind in ("chain", "conv")} == CASES[name][2]
    with without_chains():
        apart = infer(x, weights, biases, chain)
    assert distance(result, wide) <= 2 * distance(apart, wide) + 1e-5
    assert distance(apart, wide) < 3e-3


def test_without_chains_every_convolution_is_a_launch_of_its_own() -> None:
    x, weights, biases, chain = tensors("a stage", torch.float16)
    on_meta = [[t.to("meta") for t in group] for group in (weights, biases)]
    with without_chains(), recording() as launches:
        infer(x.to("meta"), *on_meta, chain)
    assert [launch.kernel for launch in launches] == ["conv.conv_kernel"] * 10

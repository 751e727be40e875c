"""Chains of residual blocks, forward and backward, against float64 autograd of plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.blocks import torch_operators
from fused_kernels.blocks.saved_tensors import pack, packed_size, unpack
from fused_kernels.choice import choosing
from fused_kernels.launch import implementation
from fused_kernels.operands.geometry import Conv
from fused_kernels.specification import Block, Chain, Layer, ShortcutKind
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import activation, fitting, normal, reseed, tiles, weight
from tests.fused_kernels.encoding import encode
from tests.fused_kernels.strategies import EXHAUSTIVE
from tests.fused_kernels.tolerances import SUM, assert_close

EPS, MOMENTUM = 1e-5, 0.3


def layer(kernel: int, stride: int = 1, *, frozen: bool = False) -> Layer:
    return Layer(Conv(kernel, kernel, stride, kernel // 2), EPS, not frozen, True, not frozen)


def bottleneck(stride: int = 1, *, project: bool = False, frozen: bool = False, first: int = 1) -> Block:
    main = (layer(1, first, frozen=frozen), layer(3, stride // first, frozen=frozen), layer(1, frozen=frozen))
    return residual(main, stride, project, frozen)


def basic(stride: int = 1, *, project: bool = False, frozen: bool = False) -> Block:
    return residual((layer(3, stride, frozen=frozen), layer(3, frozen=frozen)), stride, project, frozen)


def residual(main: tuple[Layer, ...], stride: int, project: bool, frozen: bool) -> Block:
    kind: ShortcutKind = "projection" if project else "identity"
    return Block(main, kind, layer(1, stride, frozen=frozen) if project else None, stride if project else 1)


def materialized(block: Block) -> Block:
    """The block with relu(bn(y)) written before each of its wide windows but the first layer's."""
    rest = (replace(later, materialize=later.conv.r > 1) for later in block.main[1:])
    return replace(block, main=(block.main[0], *rest))


@dataclass
class Network:
    """A chain with tensors for it."""

    chain: Chain
    x: Tensor
    weights: list[Tensor]
    gammas: list[Tensor]
    betas: list[Tensor]
    running: list[Tensor]

    def inputs(self) -> list[Tensor]:
        return [self.x, *self.weights, *self.gammas, *self.betas]

    def run(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        momenta = [MOMENTUM] * len(self.weights)
        return torch_operators.residual_blocks(
            self.x, self.weights, self.gammas, self.betas, self.running, momenta, encode(self.chain), True
        )


def network(
    chain: Chain, channels: Sequence[tuple[int, int]], x: Tensor, *, dtype: torch.dtype = torch.float32
) -> Network:
    """Random weights; ``channels`` are (K, C) of each layer."""
    weights = [
        weight(k, c, lay.conv.r, lay.conv.s) * 1.5 for (k, c), lay in zip(channels, chain.layers, strict=True)
    ]
    gammas = [normal(k).abs() + 0.3 for k, _ in channels]
    betas = [normal(k) for k, _ in channels]
    running = [t for k, _ in channels for t in (normal(k), normal(k).abs() + 0.5)]
    made = Network(chain, x.to(dtype), weights, gammas, betas, running)
    for tensor in made.inputs():
        tensor.requires_grad_()
    return made


def as_float64(made: Network) -> Network:
    def wide(tensors: list[Tensor]) -> list[Tensor]:
        return [t.detach().double().requires_grad_() for t in tensors]

    (x,) = wide([made.x])
    running = [t.double() for t in made.running]
    return Network(made.chain, x, wide(made.weights), wide(made.gammas), wide(made.betas), running)


def torchs(made: Network) -> Tensor:
    """The same network by torch's own functions; moves ``made.running`` as they do."""
    index = iter(range(len(made.weights)))

    def conv_bn(x: Tensor, lay: Layer) -> Tensor:
        i = next(index)
        y = F.conv2d(x, made.weights[i].to(x.dtype), stride=lay.conv.stride, padding=lay.conv.padding)
        mean, var = made.running[2 * i : 2 * i + 2]
        return F.batch_norm(
            y, mean, var, made.gammas[i], made.betas[i], lay.batch_statistics, MOMENTUM, lay.eps
        )

    x = made.x
    for block in made.chain.blocks:
        y = x
        for lay in block.main[:-1]:
            y = F.relu(conv_bn(y, lay))
        y = conv_bn(y, block.main[-1])
        if block.projection is not None:
            x = F.relu(y + conv_bn(x, block.projection))
        elif block.shortcut == "pad":
            s = block.stride
            x = F.relu(y + F.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, *block.pad)))
        else:
            x = F.relu(y + x)
    return x


def check(made: Network) -> None:
    """Result, all gradients and the next running statistics, with a random upstream gradient."""
    truth = as_float64(made)
    out = made.run()
    expected = torchs(truth)
    dz = activation(*expected.shape)
    gradients = torch.autograd.grad(out[0], made.inputs(), dz.to(out[0].dtype))
    expected_gradients = torch.autograd.grad(expected, truth.inputs(), dz.double())
    assert_close("z", out[0], expected)
    for number, (got, want) in enumerate(zip(gradients, expected_gradients, strict=True)):
        assert_close(f"gradient {number}", got, want)
    updating = [i for i, lay in enumerate(made.chain.layers) if lay.updates]
    for got, i in zip(out[len(out) - len(updating) :], updating, strict=True):
        assert_close(f"running statistics {i}", got, torch.stack(truth.running[2 * i : 2 * i + 2]), SUM)


CASES = {
    "bottleneck": (Chain((bottleneck(),)), [(8, 32), (8, 8), (32, 8)], 32),
    "basic": (Chain((basic(),)), [(20, 20), (20, 20)], 20),
    "projection": (Chain((bottleneck(2, project=True),)), [(8, 16), (8, 8), (32, 8), (32, 16)], 16),
    "stride on the 1x1": (Chain((bottleneck(2, project=True, first=2),)), [(8, 16), (8, 8), (32, 8), (32, 16)], 16),
    "projection of stride 1": (Chain((basic(project=True),)), [(12, 8), (12, 12), (12, 8)], 8),
    "two linked": (Chain((basic(), basic())), [(8, 8)] * 4, 8),
    "linked to a projection": (
        Chain((bottleneck(2, project=True), bottleneck(), basic(2, project=True))),
        [(8, 16), (8, 8), (32, 8), (32, 16), (8, 32), (8, 8), (32, 8), (20, 32), (20, 20), (20, 32)],
        16,
    ),
    "pad": (
        Chain((basic(), Block((layer(3, 2), layer(3)), "pad", None, 2, (4, 5)), basic())),
        [(8, 8), (8, 8), (17, 8), (17, 17), (17, 17), (17, 17)],
        8,
    ),
    "frozen": (Chain((bottleneck(2, project=True, frozen=True), bottleneck(frozen=True))),
               [(8, 16), (8, 8), (32, 8), (32, 16), (8, 32), (8, 8), (32, 8)], 16),
    "materialized": (Chain((materialized(bottleneck(2, project=True)), materialized(basic(2, project=True)))),
                     [(8, 16), (8, 8), (32, 8), (32, 16), (20, 32), (20, 20), (20, 32)], 16),
    "frozen, then not": (Chain((basic(frozen=True), basic())), [(8, 8)] * 4, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_exact_in_float64(name: str) -> None:
    chain, channels, c = CASES[name]
    made = network(chain, channels, activation(2, c, 7, 5), dtype=torch.float64)
    check(
        Network(
            chain, *[getattr(as_float64(made), f) for f in ("x", "weights", "gammas", "betas", "running")]
        )
    )


@pytest.mark.parametrize(
    "name",
    [
        "stride on the 1x1",
        "projection of stride 1",
        "linked to a projection",
        "pad",
        "frozen",
        "frozen, then not",
        "materialized",
    ],
)
def test_kernels_agree_with_float64_autograd(name: str) -> None:
    """These chains contain the other ones."""
    chain, channels, c = CASES[name]
    with tiles(Tile(64, 32, 32, splits=2)):  # two tiles of the larger plane's 70 rows
        check(network(chain, channels, activation(2, c, 7, 5)))


@settings(max_examples=50 if EXHAUSTIVE else 2, deadline=None)
@given(
    n=st.integers(2, 3),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    width=st.integers(4, 20),
    stride=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_any_geometry(n: int, size: tuple[int, int], width: int, stride: int, seed: int) -> None:
    """At least eight rows: with fewer, gradients of batch norms cancel to rounding errors."""
    reseed(seed)
    chain = Chain((basic(stride, project=True), basic()))
    channels = [(width, 5), (width, width), (width, 5), (width, width), (width, width)]
    with choosing(fitting):
        check(network(chain, channels, activation(n, 5, *size, std=3.0)))


def test_a_gradient_that_is_not_wanted_is_not_computed(small_tiles: Tile) -> None:
    made = network(*CASES["two linked"][:2], activation(1, 8, 4, 4))
    made.x.requires_grad_(False)
    made.weights[2].requires_grad_(False)
    z = made.run()[0]
    z.backward(torch.ones_like(z))
    assert made.x.grad is None
    assert [w.grad is None for w in made.weights] == [False, False, True, False]


@pytest.mark.parametrize("how", ["kernels", "reference"])
def test_the_same_input_gives_the_same_bits(how: str, small_tiles: Tile) -> None:
    made = network(*CASES["projection"][:2], activation(1, 16, 5, 7))

    def once() -> list[Tensor]:
        out = made.run()
        return [*out, *torch.autograd.grad(out[0], made.inputs(), torch.cos(out[0].detach()))]

    context: AbstractContextManager[None] = implementation(how) if how else nullcontext()
    with context:
        for first, second in zip(once(), once(), strict=True):
            assert torch.equal(first, second)


def test_a_written_activation_gives_the_bits_of_one_in_registers(small_tiles: Tile) -> None:
    """In half precision, where both are rounded; in single precision nothing is."""
    chain, channels, c = CASES["materialized"]
    plain = Chain(
        tuple(
            bottleneck(2, project=True) if len(b.main) == 3 else basic(2, project=True) for b in chain.blocks
        )
    )
    results = []
    for form in (chain, plain):
        reseed(0)
        made = network(form, channels, activation(1, c, 5, 7), dtype=torch.float16)
        z = made.run()[0]
        results.append([z, *torch.autograd.grad(z, made.inputs(), torch.cos(z.detach()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("name", "c"), [("pad", 8), ("materialized", 16)])
def test_saved_tensors_survive_packing(name: str, c: int) -> None:
    made = network(*CASES[name][:2], activation(1, c, 4, 4), dtype=torch.float64)
    with torch.no_grad():
        flat = made.run()[: packed_size(made.chain)]
    again = pack(unpack(flat, made.chain))
    assert len(again) == len(flat)
    assert all(a is b for a, b in zip(again, flat, strict=True))

"""The operators keep torch.library's promises: schemas, fake kernels, autograd, tracing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

from fused_kernels.blocks import torch_operators
from fused_kernels.blocks.saved_tensors import packed_size
from fused_kernels.launch import implementation
from fused_kernels.operands.geometry import Conv
from fused_kernels.specification import Chain, layer_text
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import activation, normal, tiles, weight
from tests.fused_kernels.encoding import encode
from tests.fused_kernels.test_blocks import CASES, Network, network

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def arguments(made: Network, save: bool = True) -> tuple[object, ...]:
    momenta = [0.1] * len(made.weights)
    return made.x, made.weights, made.gammas, made.betas, made.running, momenta, encode(made.chain), save


@pytest.mark.parametrize(("how", "case"), [("reference", "projection"), ("kernels", "basic")])
def test_residual_blocks(how: str, case: str) -> None:
    chain, channels, c = CASES[case]
    made = network(chain, channels, activation(1, c, 4, 4))
    with implementation(how), tiles(Tile(32, 32, 32)):
        opcheck(torch_operators.residual_blocks, arguments(made), test_utils=CHECKS)


@pytest.mark.parametrize("pool", [True, False])
def test_stem(pool: bool) -> None:
    text = layer_text(Conv(7, 7, 2, 3), 1e-5, "btu", None)
    image, w = activation(1, 3, 9, 9), weight(8, 3, 7, 7).requires_grad_()
    vectors = [normal(8).requires_grad_(), normal(8).requires_grad_()]
    running = [normal(8), normal(8).abs()]
    with implementation("reference"):
        opcheck(
            torch_operators.stem,
            (image, w, *vectors, running, 0.1, text, pool, torch.float32),
            test_utils=CHECKS,
        )


def test_inference_operators() -> None:
    chain, channels, c = CASES["bottleneck"]
    made = network(Chain(chain.blocks), channels, activation(1, c, 4, 4))
    weights, biases = [w.detach() for w in made.weights], [b.detach() for b in made.betas]
    with implementation("reference"):
        opcheck(torch_operators.residual_blocks_inference, (made.x.detach(), weights, biases, encode(chain)))
        image, w = activation(1, 3, 9, 9), weight(8, 3, 7, 7)
        opcheck(torch_operators.stem_inference, (image, w, normal(8), 2, 3, True))
        opcheck(torch_operators.pool_classifier, (activation(2, 8, 3, 3), normal(5, 8), normal(5)))


def test_weights_are_cast_once_and_their_gradients_are_in_their_own_dtype() -> None:
    chain, channels, c = CASES["linked to a projection"]
    made = network(chain, channels, activation(2, c, 4, 4), dtype=torch.float16)
    halves = replace(made, weights=[w.detach().half().requires_grad_() for w in made.weights])
    with implementation("reference"):
        cast, plain = (torch_operators.residual_blocks(*arguments(each)) for each in (made, halves))
        dz = torch.cos(plain[0].detach())
        expected = torch.autograd.grad(plain[0], halves.weights, dz)
        gradients = torch.autograd.grad(cast[0], made.weights, dz)
    kept = cast[packed_size(chain) :][: len(channels)]
    assert len(cast) == len(plain) + len(channels)
    assert all(torch.equal(copy, w) for copy, w in zip(kept, halves.weights, strict=True))
    for got, other in zip(gradients, expected, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got.half(), other)


def test_a_gradient_without_saved_tensors_is_refused() -> None:
    chain, channels, c = CASES["basic"]
    made = network(chain, channels, activation(1, c, 4, 4))
    with implementation("reference"), pytest.raises(RuntimeError, match="save=True"):
        torch_operators.residual_blocks(*arguments(made, save=False))


def test_fake_tensors_have_the_shapes_and_memory_of_real_ones() -> None:
    chain, channels, c = CASES["linked to a projection"]
    made = network(chain, channels, activation(2, c, 7, 5))
    with torch.no_grad(), tiles(Tile(32, 32, 32)), implementation("kernels"):
        real = torch_operators.residual_blocks(*arguments(made))
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = torch_operators.residual_blocks(*[
                [mode.from_tensor(t) for t in a] if isinstance(a, list) and isinstance(a[0], torch.Tensor)
                else mode.from_tensor(a) if isinstance(a, torch.Tensor) else a
                for a in arguments(made)
            ])  # fmt: skip
    assert [(t.shape, t.stride(), t.dtype) for t in fake] == [(t.shape, t.stride(), t.dtype) for t in real]

"""No two tensors that are alive at one time share a byte, and the arena is little larger than it must be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.gpus import TARGETS
from rescompile.backends.triton.lowering.chains import with_chains
from rescompile.backends.triton.lowering.network import Network, lower
from rescompile.backends.triton.planning.arena import Life, live_bytes, place
from rescompile.backends.triton.planning.recording import record
from rescompile.graph.export import export
from rescompile.graph.fold import fold
from rescompile.graph.half import half
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find

LIVES = st.lists(
    st.builds(
        lambda size, first, length: Life(size, first, first + length),
        st.integers(0, 5000),
        st.integers(0, 30),
        st.integers(0, 8),
    ),
    max_size=25,
)


@given(LIVES, st.sampled_from([1, 16, 256]))
def test_what_is_alive_at_one_time_never_overlaps(lives: list[Life], alignment: int) -> None:
    placed = place(lives, alignment=alignment)
    ends = [offset + life.bytes for offset, life in zip(placed.offsets, lives, strict=True)]
    assert max(ends, default=0) == placed.arena_bytes >= placed.live_bytes
    assert all(offset % alignment == 0 for offset in placed.offsets)
    for i, a in enumerate(lives):
        for j in range(i):
            apart = ends[i] <= placed.offsets[j] or ends[j] <= placed.offsets[i]
            assert apart or not a.overlaps(lives[j])


def test_the_live_bytes_are_those_of_the_fullest_moment() -> None:
    assert live_bytes([Life(5, 0, 1), Life(7, 1, 2), Life(100, 3, 3), Life(60, 4, 9), Life(50, 9, 9)]) == 110
    assert place([], alignment=256).arena_bytes == live_bytes([]) == 0


def test_a_place_between_two_tensors_is_used() -> None:
    lives = [Life(100, 0, 9), Life(60, 1, 1), Life(50, 1, 9), Life(40, 2, 2)]
    # by size: 100 at 0, 60 at 100, 50 at 160; 40 fits where 60 was
    assert place(lives, alignment=1).offsets == (0, 100, 160, 100)


def family(name: str) -> Network:
    spec = find(depth=None, name=name)
    side = 32 if spec.family == "cifar" else 224
    model, _ = random_model(spec, 10, seed=0)
    return with_chains(lower(half(fold(export(model, image_size=side))), (side, side)))


@pytest.mark.parametrize("name", ["resnet20-cifar", "resnet29-cifar-bottleneck", "resnet18", "resnet50"])
def test_the_arena_is_within_the_promise(name: str) -> None:
    made = family(name)
    side = 32 if "cifar" in name else 224
    weights = {
        key: torch.empty(values.shape, dtype=torch.from_numpy(values[:0].copy()).dtype, device="meta")
        for key, values in made.weights.items()
    }
    for batch, target in ((1, "sm_80"), (8, "sm_90"), (33, "sm_90")):
        recorded = record(
            made.steps,
            weights,
            torch.empty(3, side, side, device="meta"),
            batch=batch,
            shared_limit=TARGETS[target].shared_limit,
        )
        placed = recorded.placement
        assert placed.live_bytes <= placed.arena_bytes <= 1.3 * placed.live_bytes

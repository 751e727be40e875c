"""The lengths of the parts of a reduction."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.ops.splits import parts_of


@given(st.integers(1, 10**6), st.integers(1, 600))
def test_parts_cover_all_steps_evenly_and_none_is_empty(steps: int, splits: int) -> None:
    length, parts = parts_of(steps, splits)
    assert (parts - 1) * length < steps <= parts * length
    assert parts <= splits
    assert length <= -(-steps // splits) * 9 / 8


@given(st.integers(1, 600))
def test_nothing_is_one_part(splits: int) -> None:
    assert parts_of(0, splits) == (1, 1)


def test_few_lengths_are_compiled() -> None:
    assert len({parts_of(steps, 1)[0] for steps in range(1, 1025)}) == 15 + 8 * 6 + 1

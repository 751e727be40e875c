"""The search measures little, leaves no block in FP16 that could be INT8, and admits where nothing helps."""

from __future__ import annotations

import random

import msgspec
import pytest

from rescompile.building.precision_search import Search, fewest_fp16_blocks
from rescompile.graph.reformats import predicted_reformats
from rescompile.report import FrontierPoint

BLOCKS = ("stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "fc")
Damages = dict[str, float]


def search_with(damages: Damages, limit: float, measured: list[tuple[str, ...]] | None = None) -> Search:
    """A network whose error is the sum of the damages of its INT8 blocks."""

    def measure(choice: tuple[str, ...]) -> FrontierPoint:
        error = sum(value for block, value in damages.items() if block not in choice)
        if measured is not None:
            measured.append(choice)
        return FrontierPoint(
            fp16_blocks=choice,
            int8_blocks=len(BLOCKS) - len(choice),
            reformats=predicted_reformats(BLOCKS, choice),
            top1_agreement=1 - error,
            top1_engine=None,
            top1_drop=None,
            relative_rms=error,
            passed=error <= limit,
        )

    return Search(BLOCKS, measure)


def order(damages: Damages) -> list[str]:
    return sorted(damages, key=lambda block: -damages[block])


EVEN = dict.fromkeys(BLOCKS, 0.01)


def test_nothing_is_restored_where_int8_keeps_the_limits() -> None:
    measured: list[tuple[str, ...]] = []
    search = search_with(EVEN, 0.09, measured)
    assert fewest_fp16_blocks(search, order(EVEN)).fp16_blocks == ()
    assert measured == [()]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_single_bad_block_is_the_only_one_restored(block: str) -> None:
    damages = EVEN | {block: 0.5}
    assert fewest_fp16_blocks(search_with(damages, 0.1), order(damages)).fp16_blocks == (block,)


@pytest.mark.parametrize("count", range(1, 9))
def test_as_many_blocks_are_restored_as_are_needed_in_few_measurements_each_made_once(count: int) -> None:
    damages = {block: 0.05 - 0.001 * index for index, block in enumerate(BLOCKS)}
    limit = sum(list(damages.values())[count:]) + 1e-9
    measured: list[tuple[str, ...]] = []
    chosen = fewest_fp16_blocks(search_with(damages, limit, measured), order(damages))
    assert chosen.fp16_blocks == BLOCKS[:count]
    assert len(measured) == len(set(measured)) <= 2 + 3 + count


def test_a_block_that_the_order_overrates_goes_back() -> None:
    damages = EVEN | {"layer2.0": 0.3}
    wrong = ["fc", "layer1.1", "layer2.0", *(b for b in BLOCKS if b not in ("fc", "layer1.1", "layer2.0"))]
    assert fewest_fp16_blocks(search_with(damages, 0.1), wrong).fp16_blocks == ("layer2.0",)


def test_of_blocks_that_could_go_back_the_one_goes_whose_return_adds_no_break() -> None:
    row = {"layer1.0", "layer1.1", "layer2.0"}
    ranking = [
        "layer1.0",
        "layer2.0",
        "layer1.1",
        "fc",
        *(block for block in BLOCKS if block not in row | {"fc"}),
    ]

    def measure(choice: tuple[str, ...]) -> FrontierPoint:
        """The classifier is needed, and any two of three blocks in a row."""
        enough = "fc" in choice and len(row & set(choice)) >= 2
        return msgspec.structs.replace(search_with(EVEN, 1.0).measure(choice), passed=enough)

    # layer1.1 has less damage than layer2.0, but in INT8 it would stand between two blocks in FP16
    assert fewest_fp16_blocks(Search(BLOCKS, measure), ranking).fp16_blocks == ("layer1.0", "layer1.1", "fc")


def test_where_even_all_blocks_do_not_suffice_the_best_is_returned() -> None:
    damages = EVEN | {"fc": -0.005}  # INT8 happens to help the classifier
    search = search_with(damages, -1.0)
    best = fewest_fp16_blocks(search, order(damages))
    assert not best.passed
    assert best == min(search.points.values(), key=lambda point: point.relative_rms)


def test_no_block_of_the_result_could_be_int8() -> None:
    rng = random.Random(0)
    for _ in range(200):
        damages = {block: rng.random() for block in BLOCKS}
        noisy = {block: value * rng.uniform(0.5, 2) for block, value in damages.items()}
        limit = rng.random() * sum(damages.values())
        search = search_with(damages, limit)
        chosen = fewest_fp16_blocks(search, order(noisy))
        assert chosen.passed
        for block in chosen.fp16_blocks:
            assert not search.passes(frozenset(chosen.fp16_blocks) - {block})


def test_the_frontier_is_sorted_by_int8_blocks() -> None:
    search = search_with(EVEN, 0.035)
    fewest_fp16_blocks(search, order(EVEN))
    counts = [point.int8_blocks for point in search.frontier]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 8)

"""What it brings that a processor holds several programs of a product: its default tile beside one of the other kind.

Where a processor holds several programs of the default tile, the other one is the large tile of 128x128 without a limit
of registers. Where it holds one, the other is the fastest candidate of which it holds several, if there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.compiled_kernels.report import markdown
from benchmarks.gpu.devices import Device
from benchmarks.gpu.model import Predicted, predict
from benchmarks.gpu.model_tiles import record_with
from fused_kernels.candidates import candidates
from fused_kernels.choice import default_tile
from fused_kernels.launch import Launch
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

LARGE = "128x128x64 8w 3s"

Found = dict[tuple[Problem, Tile], list[Launch]]


@dataclass(frozen=True)
class Timed:
    """One tile of one problem: the prediction of its product, and the model's ms of all that it launches."""

    tile: Tile
    product: Predicted
    ms: float


@dataclass(frozen=True)
class Pair:
    """One problem, how often the network has it, its default tile and one of the other kind."""

    problem: Problem
    count: int
    default: Timed
    other: Timed | None


def compare(record: Callable[[], object], device: Device, jobs: int) -> list[Pair]:
    """A pair for every product that ``record`` launches."""
    found: Found = {}
    counts = record_with(default_tile, record, found)
    defaults = {timed[0]: timed[1] for timed in _timed(found, device, jobs)}
    others = {problem: _others(problem, one.product.resident) for problem, one in defaults.items()}
    found = {}
    for rank in range(max(map(len, others.values()), default=0)):
        record_with(partial(_ranked, others, rank), record, found)
    by_problem: dict[Problem, list[Timed]] = defaultdict(list)
    for problem, timed in _timed(found, device, jobs):
        if (timed.product.resident > 1) != (defaults[problem].product.resident > 1):
            by_problem[problem].append(timed)
    return [
        Pair(
            problem, counts[problem], one, min(by_problem[problem], key=lambda timed: timed.ms, default=None)
        )
        for problem, one in defaults.items()
    ]


def _ranked(others: dict[Problem, list[Tile]], rank: int, problem: Problem) -> Tile:
    tiles = others.get(problem, [])
    return tiles[rank] if rank < len(tiles) else default_tile(problem)


def _others(problem: Problem, resident: int) -> list[Tile]:
    """Candidates to hold against the default; of those that differ in their splits the first."""
    first: dict[Tile, Tile] = {}
    for tile in candidates(problem):
        if not tile.flat:
            first.setdefault(replace(tile, splits=1), tile)
    return [tile for tile in first.values() if resident == 1 or tile.name == LARGE]


def _timed(found: Found, device: Device, jobs: int) -> Iterator[tuple[Problem, Timed]]:
    """The prediction of every problem and tile that was launched; the product is its first launch."""
    predicted = iter(predict([launch for launches in found.values() for launch in launches], device, jobs))
    for (problem, tile), launches in found.items():
        ones = [next(predicted) for _ in launches]
        if ones:
            yield problem, Timed(tile, ones[0], sum(one.ms for one in ones))


_SIDE = ("tile", "programs", "registers", "a loop", "model, ms")
_HEADER = ("product", "launches", *_SIDE, *(f"{name} of the other" for name in _SIDE))


def as_markdown(pairs: Sequence[Pair]) -> str:
    """One line for each kind of product and pair of tiles; ms are of all its launches, other figures the largest."""
    groups: dict[tuple[str, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.other is not None or pair.default.product.resident == 1:
            groups[_group(pair)].append(pair)
    rows = [
        [key[0], str(sum(one.count for one in ones)), *_side(ones, other=False), *_side(ones, other=True)]
        for key, ones in sorted(groups.items())
    ]
    return markdown(_HEADER, set(_HEADER[1:]), rows)


def _group(pair: Pair) -> tuple[str, ...]:
    problem, other = pair.problem, pair.other
    stride = f" /{problem.conv.stride}" if problem.conv.stride > 1 else ""
    name = f"{pair.default.product.name} {problem.conv.r}x{problem.conv.s}{stride}"
    tiles = pair.default.tile.name, "" if other is None else other.tile.name
    programs = pair.default.product.resident, 0 if other is None else other.product.resident
    return name, *tiles, *map(str, programs)


def _side(pairs: Iterable[Pair], *, other: bool) -> list[str]:
    timed = [
        (pair.count, one) for pair in pairs if (one := pair.other if other else pair.default) is not None
    ]
    if not timed:
        return ["-"] * len(_SIDE)
    products = [one.product for _, one in timed]
    return [
        timed[0][1].tile.name,
        str(products[0].resident),
        str(max(product.registers for product in products)),
        str(max(product.loop for product in products)),
        f"{sum(count * one.ms for count, one in timed):.3f}",
    ]

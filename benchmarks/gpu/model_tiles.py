"""The tile that the model prefers for each product of a network, beside the default."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.devices import Device
from benchmarks.gpu.model import predict
from fused_kernels.candidates import MOST, candidates
from fused_kernels.choice import choosing, default_tile
from fused_kernels.launch import Launch, listening
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

PRODUCTS = {"conv.conv_kernel", "wgrad.wgrad_kernel"}


@dataclass(frozen=True)
class Compared:
    """One problem, how often the network has it, and the model's time of each candidate in ms."""

    problem: Problem
    count: int
    times: dict[Tile, float]

    @property
    def default(self) -> float:
        """The time of the tile that runs without a table."""
        return self.count * self.times[default_tile(self.problem)]

    @property
    def best(self) -> Tile:
        """The fastest tile, the first of several."""
        return min(self.times, key=lambda tile: self.times[tile])


def compare(record: Callable[[], object], device: Device, jobs: int) -> list[Compared]:
    """Every candidate of every product that ``record`` launches, but for flat ones, which are never defaults."""
    found: dict[tuple[Problem, Tile], list[Launch]] = {}
    counts: Counter[Problem] = Counter()
    for rank in range(MOST):
        seen = record_with(partial(_ranked, rank), record, found)
        counts = counts or seen
    flat = [launch for launches in found.values() for launch in launches]
    times = iter(predict(flat, device, jobs))
    by_problem: dict[Problem, dict[Tile, float]] = defaultdict(dict)
    for (problem, tile), launches in found.items():
        if launches:
            by_problem[problem][tile] = sum(next(times).ms for _ in launches)
    return [Compared(problem, counts[problem], tiles) for problem, tiles in by_problem.items()]


def _ranked(rank: int, problem: Problem) -> Tile:
    menu = [tile for tile in candidates(problem) if not tile.flat]
    return menu[min(rank, len(menu) - 1)]


def record_with(
    tile_for: Callable[[Problem], Tile],
    record: Callable[[], object],
    found: dict[tuple[Problem, Tile], list[Launch]],
) -> Counter[Problem]:
    """Add the launches of every problem with one tile to ``found``; returns how often each problem is asked for."""
    counts: Counter[Problem] = Counter()
    current: list[Launch] = []

    def choose(problem: Problem) -> Tile:
        nonlocal current
        tile = tile_for(problem)
        current = []
        found.setdefault((problem, tile), current)
        counts[problem] += 1
        return tile

    def listen(launch: Launch) -> None:
        if launch.kernel in PRODUCTS:
            current.append(launch)

    with choosing(choose), listening(listen):
        record()
    return counts


def as_text(compared: Sequence[Compared]) -> str:
    """A line for each problem, the one that a better tile helps most first."""
    ordered = sorted(compared, key=lambda one: one.count * one.times[one.best] - one.default)
    lines = [
        "a model, not a measurement: ms of all launches of a problem with the default tile, and the best one"
    ]
    for one in ordered:
        best = one.count * one.times[one.best]
        lines.append(
            f"{one.default:8.3f} {best:8.3f}  {one.best.name:24} {default_tile(one.problem).name:24} {one.problem.key}"
        )
    total, least = (
        sum(times)
        for times in zip(*((one.default, one.count * one.times[one.best]) for one in compared), strict=True)
    )
    return "\n".join([*lines, f"{total:8.3f} {least:8.3f}  all"])

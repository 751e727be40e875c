"""Times whole networks: latency at batch 1, and throughput with each contender at its best batch size."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache, Failed
from benchmarks.networks import DEEP, Budget, Network, OutOfTime
from benchmarks.peers import ENTRANTS, Entrant, Missing
from benchmarks.peers.base import Call
from benchmarks.peers.torch import Compiled
from benchmarks.rows import Row
from rescompile.manifest import GRAPH
from rescompile.measuring.race import Contender, race
from rescompile.measuring.roofline import Roofline
from rescompile.measuring.work import work_of
from rescompile.metrics import relative_rms

Mode = Literal["latency", "throughput"]
MODES: tuple[Mode, ...] = ("latency", "throughput")
BATCHES = (1, 4, 16)
"""Tried for each contender; the one with the most images per second is timed for throughput."""
LARGE_BATCHES = (1, 4, 8)
"""For networks deeper than ResNet-50, whose calls take seconds."""
SECONDS = 10.0
FINALIST = 1.5
"""A contender whose time for an image is at most this many times the best one's runs again, in the final."""


@dataclass
class ReadyEntrant:
    """A contender whose outputs were checked."""

    entrant: Entrant
    call: Call
    error: float


@dataclass
class PreparedNetwork:
    """All contenders of one network, prepared once for both modes."""

    ready: list[ReadyEntrant] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Name of an entrant to the reason why it is not timed."""
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    compiling: float = 0.0
    """Seconds of contenders that deep networks do not have; an estimate for those leaves them out."""


class WrongAnswer(Exception):
    """A contender's logits are too far from the fp32 logits, so it is not timed."""


@dataclass
class EngineRaces:
    """Times each network and mode once and keeps the rows."""

    artifacts: ArtifactCache
    budget: Budget
    roofline: Roofline
    threads: int
    seconds: float = SECONDS
    entrants: Sequence[Entrant] = ENTRANTS
    batches: Sequence[int] | None = None
    """Batch sizes to try for throughput; None takes BATCHES, or LARGE_BATCHES for deep networks."""
    rows: dict[tuple[str, Mode], list[Row]] = field(default_factory=dict)
    _prepared: dict[str, PreparedNetwork] = field(default_factory=dict)

    def rows_of(self, net: Network, mode: Mode) -> list[Row]:
        """The rows of one race, one for each contender."""
        key = (net.name, mode)
        if key not in self.rows:
            began = time.monotonic()
            try:
                self.budget.claim(net.name)
            except OutOfTime as error:
                self.rows[key] = [self._row(net, mode, e, skipped=str(error)) for e in self.entrants]
            else:
                self.rows[key] = self._race(net, mode)
                alone = self._prepared[net.name].compiling if mode == "latency" else 0.0
                self.budget.spent(net.name, time.monotonic() - began - alone)
        return self.rows[key]

    def _race(self, net: Network, mode: Mode) -> list[Row]:
        prepared = self._prepared_for(net)
        batches = {contender.entrant.name: 1 for contender in prepared.ready}
        if mode == "throughput":
            batches = {r.entrant.name: self._best_batch(net, r.call) for r in prepared.ready}
        contenders = {
            contender.entrant.name: self._to_race(net, contender, prepared, batches[contender.entrant.name])
            for contender in prepared.ready
        }
        timings = race(contenders, seconds=self.seconds) if contenders else {}
        finalists = _finalists({name: timing.p50 / batches[name] for name, timing in timings.items()})
        if len(finalists) > 1:
            timings |= race({name: contenders[name] for name in finalists}, seconds=self.seconds)
        errors = {contender.entrant.name: contender.error for contender in prepared.ready}
        return [
            self._row(
                net, mode, entrant,
                batch=batches.get(entrant.name, 1),
                timing=timings.get(entrant.name),
                relative_rms=errors.get(entrant.name),
                skipped=prepared.missing.get(entrant.name),
            )
            for entrant in self.entrants
        ]  # fmt: skip

    def _prepared_for(self, net: Network) -> PreparedNetwork:
        if net.name not in self._prepared:
            self._prepared.clear()  # one network's contenders in memory at a time
            self._prepared[net.name] = self._prepare(net)
        return self._prepared[net.name]

    def _prepare(self, net: Network) -> PreparedNetwork:
        prepared = PreparedNetwork()
        try:
            prepared.logits = self.artifacts.logits(net)
        except Failed as error:
            prepared.missing = {entrant.name: f"its fp32 graph failed: {error}" for entrant in self.entrants}
            return prepared
        images = self.artifacts.images(net, len(prepared.logits))
        for entrant in self.entrants:
            began = time.monotonic()
            try:
                call = entrant.prepare(net, self.artifacts, self.threads)
                answers = np.concatenate([call(images[i : i + 1]) for i in range(len(images))])
            except (Missing, Failed) as error:
                prepared.missing[entrant.name] = str(error)
                continue
            if entrant.name == Compiled.name:
                prepared.compiling += time.monotonic() - began
            error = relative_rms(prepared.logits, answers)
            if error <= entrant.allowed:
                prepared.ready.append(ReadyEntrant(entrant, call, error))
            else:
                prepared.missing[entrant.name] = (
                    f"WRONG: relative RMS {error:.3g} to fp32, allowed {entrant.allowed:g}"
                )
        return prepared

    def _to_race(
        self, net: Network, contender: ReadyEntrant, prepared: PreparedNetwork, batch: int
    ) -> Contender:
        images = self.artifacts.images(net, batch)
        # a single image may differ more from fp32 than all four together, so it gets the tolerance of all four
        energy = float(np.square(prepared.logits.astype(np.float64)).sum()) * -(
            -batch // len(prepared.logits)
        )
        expected = prepared.logits[np.arange(batch) % len(prepared.logits)]

        def check(answer: NDArray[Any]) -> None:
            error = np.square(answer.astype(np.float64) - expected).sum()
            if not error <= contender.entrant.allowed**2 * energy:
                raise WrongAnswer(f"{contender.entrant.name} is wrong about {net.name} at batch {batch}")

        return Contender(partial(contender.call, images), check)

    def _best_batch(self, net: Network, call: Call) -> int:
        rates = {}
        for batch in self.batches or (LARGE_BATCHES if net.name in DEEP else BATCHES):
            images = self.artifacts.images(net, batch)
            call(images)  # compiles shapes and allocates memory
            rates[batch] = batch / min(_seconds(call, images) for _ in range(3))
        return max(rates, key=lambda batch: rates[batch])

    def _row(self, net: Network, mode: Mode, entrant: Entrant, **found: Any) -> Row:
        timing, batch = found.get("timing"), found.get("batch", 1)
        return Row(
            suite="engines",
            case=f"{net.name} {mode}",
            contender=entrant.name,
            ours=entrant.ours,
            weights=net.said,
            allowed=entrant.allowed,
            floor_ms=self._floor(net, entrant, batch) if timing is not None else None,
            images_per_second=1e3 * batch / timing.p50 if timing is not None else None,
            **found,
        )

    def _floor(self, net: Network, entrant: Entrant, batch: int) -> float:
        """The least time of all blocks for their operations or bytes, in the contender's precision."""
        precision = "int8" if "int8" in entrant.name else "fp32"
        model = onnx.load(self.artifacts.engine(net, precision).path / GRAPH)
        return sum(
            self.roofline.floor_ms(block.float_ops, block.int8_ops, block.bytes)
            for block in work_of(model, batch)
        )


def _finalists(costs: Mapping[str, float]) -> list[str]:
    """The contenders whose cost is close to the least; the slow ones would take most of the time of all rounds."""
    return [name for name, cost in costs.items() if cost <= FINALIST * min(costs.values())]


def _seconds(call: Call, images: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    call(images)
    return time.perf_counter() - began

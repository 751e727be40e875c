"""The races of whole networks: latency at batch 1, and throughput, each contender at the batch that suits it best."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.networks import DEEP, Budget, Network, OutOfTime
from benchmarks.peers import ENTRANTS, Entrant, Missing
from benchmarks.peers.base import Call
from benchmarks.peers.torch import Compiled
from benchmarks.rows import Row
from benchmarks.workshop import Failed, Workshop
from rescompile.manifest import GRAPH
from rescompile.measuring.race import Contender, race
from rescompile.measuring.roofline import Roofline
from rescompile.measuring.work import work_of
from rescompile.metrics import relative_rms

Mode = Literal["latency", "throughput"]
MODES: tuple[Mode, ...] = ("latency", "throughput")
BATCHES = (1, 4, 16)
"""Tried by each contender; the one with the most images a second goes into the race for throughput."""
LARGE_BATCHES = (1, 4, 8)
"""The same for networks above ResNet-50, whose calls take seconds."""
SECONDS = 8.0


@dataclass
class Ready:
    """A contender that has answered rightly."""

    entrant: Entrant
    call: Call
    error: float


@dataclass
class Stable:
    """All contenders of one network, made ready once for both modes."""

    ready: list[Ready] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Name of an entrant to the reason why it does not race."""
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    compiling: float = 0.0
    """Seconds of contenders that deep networks do not have, so that they say nothing about those."""


class WrongAnswer(Exception):
    """A contender's logits are too far from fp32's: it computes something else, and has no time."""


@dataclass
class EngineRaces:
    """Runs each race once and keeps its rows."""

    workshop: Workshop
    budget: Budget
    roofline: Roofline
    threads: int
    seconds: float = SECONDS
    entrants: Sequence[Entrant] = ENTRANTS
    batches: Sequence[int] | None = None
    """Tried for throughput; None takes BATCHES, or LARGE_BATCHES for deep networks."""
    rows: dict[tuple[str, Mode], list[Row]] = field(default_factory=dict)
    _stables: dict[str, Stable] = field(default_factory=dict)

    def of(self, net: Network, mode: Mode) -> list[Row]:
        """The rows of one race, one for each entrant."""
        key = (net.name, mode)
        if key not in self.rows:
            began = time.monotonic()
            try:
                self.budget.claim(net.name)
            except OutOfTime as error:
                self.rows[key] = [self._row(net, mode, e, skipped=str(error)) for e in self.entrants]
            else:
                self.rows[key] = self._race(net, mode)
                alone = self._stables[net.name].compiling if mode == "latency" else 0.0
                self.budget.spent(net.name, time.monotonic() - began - alone)
        return self.rows[key]

    def _race(self, net: Network, mode: Mode) -> list[Row]:
        stable = self._stable(net)
        batches = {ready.entrant.name: 1 for ready in stable.ready}
        if mode == "throughput":
            batches = {r.entrant.name: self._best_batch(net, r.call) for r in stable.ready}
        contenders = {
            ready.entrant.name: self._contender(net, ready, stable, batches[ready.entrant.name])
            for ready in stable.ready
        }
        timings = race(contenders, seconds=self.seconds) if contenders else {}
        errors = {ready.entrant.name: ready.error for ready in stable.ready}
        return [
            self._row(
                net, mode, entrant,
                batch=batches.get(entrant.name, 1),
                timing=timings.get(entrant.name),
                relative_rms=errors.get(entrant.name),
                skipped=stable.missing.get(entrant.name),
            )
            for entrant in self.entrants
        ]  # fmt: skip

    def _stable(self, net: Network) -> Stable:
        if net.name not in self._stables:
            self._stables.clear()  # one network's contenders in memory at a time
            self._stables[net.name] = self._prepare(net)
        return self._stables[net.name]

    def _prepare(self, net: Network) -> Stable:
        stable = Stable()
        try:
            stable.logits = self.workshop.logits(net)
        except Failed as error:
            stable.missing = {entrant.name: f"its fp32 graph failed: {error}" for entrant in self.entrants}
            return stable
        images = self.workshop.images(net, len(stable.logits))
        for entrant in self.entrants:
            began = time.monotonic()
            try:
                call = entrant.prepare(net, self.workshop, self.threads)
                answers = np.concatenate([call(images[i : i + 1]) for i in range(len(images))])
            except (Missing, Failed) as error:
                stable.missing[entrant.name] = str(error)
                continue
            if entrant.name == Compiled.name:
                stable.compiling += time.monotonic() - began
            error = relative_rms(stable.logits, answers)
            if error <= entrant.allowed:
                stable.ready.append(Ready(entrant, call, error))
            else:
                stable.missing[entrant.name] = (
                    f"WRONG: relative RMS {error:.3g} to fp32, allowed {entrant.allowed:g}"
                )
        return stable

    def _contender(self, net: Network, ready: Ready, stable: Stable, batch: int) -> Contender:
        images = self.workshop.images(net, batch)
        # a single image may lie further from fp32 than all four together: what all may err, one may
        energy = float(np.square(stable.logits.astype(np.float64)).sum()) * -(-batch // len(stable.logits))
        expected = stable.logits[np.arange(batch) % len(stable.logits)]

        def check(answer: NDArray[Any]) -> None:
            error = np.square(answer.astype(np.float64) - expected).sum()
            if not error <= ready.entrant.allowed**2 * energy:
                raise WrongAnswer(f"{ready.entrant.name} is wrong about {net.name} at batch {batch}")

        return Contender(partial(ready.call, images), check)

    def _best_batch(self, net: Network, call: Call) -> int:
        rates = {}
        for batch in self.batches or (LARGE_BATCHES if net.name in DEEP else BATCHES):
            images = self.workshop.images(net, batch)
            call(images)  # shapes are compiled, memory is taken
            began = time.perf_counter()
            call(images)
            rates[batch] = batch / (time.perf_counter() - began)
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
        """The sum over blocks of what operations or bytes need, in the precision in which the contender computes."""
        precision = "int8" if "int8" in entrant.name else "fp32"
        model = onnx.load(self.workshop.engine(net, precision).path / GRAPH)
        return sum(
            self.roofline.floor_ms(block.float_ops, block.int8_ops, block.bytes)
            for block in work_of(model, batch)
        )

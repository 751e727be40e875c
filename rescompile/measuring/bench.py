"""``rescompile bench DIR``: latency, throughput, start and memory of an engine on this machine.

Latency and throughput are timed in one race, batch sizes in turns, through ``Engine`` as a user calls it. A cold start
is a new process that finds no compiled engine in the cache; a warm start finds the one that the cold start left.
Outputs are checked against the golden ones before timing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.file_names import text_of
from calibration.preprocess import Size, size_words
from rescompile.backends.base import Hint, RunOptions
from rescompile.cache import SWITCH
from rescompile.errors import EngineError, UsageError
from rescompile.manifest import Manifest
from rescompile.measuring.cold_start import Start, start_once
from rescompile.measuring.disturbance import Watch
from rescompile.measuring.origin import Origin, origin
from rescompile.measuring.race import Contender, race
from rescompile.measuring.timing import Timing
from rescompile.metrics import relative_rms
from rescompile.progress import Progress, StageClock
from rescompile.report import JsonReport, read_report
from rescompile.runtime.engine import Engine
from rescompile.runtime.golden import Check, golden_batch, in_order
from rescompile.runtime.inputs import at_size, preprocess_at
from rescompile.runtime.loading import load

FORMAT: Literal["rescompile-bench-1"] = "rescompile-bench-1"
DEFAULT_SECONDS = 15.0
STARTS = 3
_MOST_BATCHES = 7
_FEW_RUNS = 100
"""With fewer runs the 99th percentile is little more than the slowest run."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The measured engine, and its accuracy from the build report; None where that was not measured."""

    directory: str
    model: str
    precision: str
    backend: str
    target: str | None
    batch: str
    input: str
    manifest_sha256: str
    checkpoint_sha256: str
    bytes: int
    """Size of the payload that the backend loads."""
    images: int
    top1: float | None
    top1_agreement: float | None
    relative_rms: float | None


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size."""

    batch: int
    timing: Timing
    images_per_second: float


class BenchReport(JsonReport, frozen=True, kw_only=True):
    """The result of ``rescompile bench`` for one engine."""

    format: Literal["rescompile-bench-1"] = FORMAT
    engine: EngineFacts
    origin: Origin
    batches: tuple[BatchResult, ...]
    """In the order of their sizes; the first is the latency."""
    cold: tuple[Start, ...]
    warm: tuple[Start, ...]
    notes: tuple[str, ...]
    requests: int = 1
    """Calls at the same time; a time is that of all of them."""

    @property
    def latency(self) -> BatchResult:
        """The smallest batch."""
        return self.batches[0]

    @property
    def best(self) -> BatchResult:
        """The batch with the most images a second."""
        return max(self.batches, key=lambda result: result.images_per_second)


def bench(
    directory: Path,
    *,
    batches: Sequence[int] | None = None,
    seconds: float = DEFAULT_SECONDS,
    starts: int = STARTS,
    threads: int | None = None,
    hint: Hint = "latency",
    streams: int | None = None,
    requests: int | None = None,
    size: Size | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure the engine in ``directory``.

    Args:
        directory: an engine directory.
        batches: batch sizes; None takes powers of two between the engine's smallest and largest.
        seconds: length of the race of all batches.
        starts: number of cold and of warm starts, in turns; 0 leaves them out.
        threads: CPU threads of the engine; None leaves the choice to its library.
        hint: ``throughput`` loads the engine for several calls at once.
        streams: number of calls that the engine computes at the same time; None leaves it to the hint.
        requests: number of calls made at the same time; None makes as many as the engine computes.
        size: side, or height and width, of the images, for an engine that takes a range; None is its own.
        progress: told what runs.

    Raises:
        UsageError: the engine does not take one of the batches, or the size.
        EngineError: the engine is damaged, or gives a wrong answer at some batch.
        BackendUnavailable: the engine cannot run on this machine.
    """
    clock = StageClock(progress)
    watch = Watch()
    options = RunOptions(threads=threads, hint=hint, streams=streams)
    with clock.stage("load"):
        engine = load(directory, options=options)
    with engine:
        manifest, parallel = engine.manifest, engine.parallel
        requests = requests or parallel
        sizes = _sizes(manifest, batches)
        with clock.stage("race"):
            timings = race(contenders(engine, directory, sizes, requests, size=size), seconds=seconds)
    cold, warm = [], []
    with clock.stage("starts"):
        for done in range(starts):
            first, second = _starts(directory, threads)
            cold.append(first)
            warm.append(second)
            if progress is not None:
                progress.advanced(done + 1, starts)
    results = tuple(
        BatchResult(batch=size, timing=found, images_per_second=1e3 * requests * size / found.p50)
        for size, found in zip(sizes, timings.values(), strict=True)
    )
    return BenchReport(
        engine=engine_facts(directory, manifest, size),
        origin=origin(threads),
        batches=results,
        cold=tuple(cold),
        warm=tuple(warm),
        notes=(*_note_on_streams(streams, parallel), *watch.notes(timings), *_notes_on_runs(results)),
        requests=requests,
    )


def _note_on_streams(asked: int | None, given: int) -> tuple[str, ...]:
    if asked is None or given >= asked:
        return ()
    return (f"this machine computes {given} calls at the same time, not the {asked} of --streams",)


def contenders(
    engine: Engine, directory: Path, sizes: Sequence[int], requests: int = 1, *, size: Size | None = None
) -> dict[str, Contender]:
    """One contender for each batch size, which gets the golden images repeated, in ``requests`` calls at once.

    There are golden answers only for the engine's own size. At another ``size``, all answers must repeat the first
    one of the engine, which has passed its self-test.
    """
    manifest, found = engine.manifest, {}
    image = preprocess_at(manifest, size or manifest.preprocess.size).size
    for count in sizes:
        fed, check = golden_batch(directory, manifest, count * requests)
        if image != manifest.preprocess.size:
            fed = at_size(fed, manifest.inputs[0], image)
            check = _same_as(engine(fed), engine)
        call = partial(engine, fed) if requests == 1 else partial(_together, engine, np.split(fed, requests))
        found[f"batch {count}"] = Contender(call, check)
    return found


def _same_as(first: Any, engine: Engine) -> Check:
    """A check that an answer is the ``first`` one, up to the tolerance of the golden answers."""

    def check(answer: Any) -> None:
        pairs = zip(in_order(first, engine.manifest), in_order(answer, engine.manifest), strict=True)
        error = max(relative_rms(*pair) for pair in pairs)
        if not error <= engine.manifest.golden_relative_rms:  # NaN, too
            raise EngineError(
                f"the engine answers the same images differently from call to call (relative RMS {error:.3g}), so its "
                "time says nothing; build it again here"
            )

    return check


def _together(engine: Engine, parts: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    return np.concatenate([answer.result() for answer in [engine.submit(part) for part in parts]])


def _sizes(manifest: Manifest, asked: Sequence[int] | None) -> list[int]:
    low, high = manifest.batch.min, manifest.batch.max
    if asked is None:
        powers = [2**power for power in range(31) if low < 2**power < high]
        every = sorted({low, high, *powers})
        return sorted(
            {every[round(i)] for i in np.linspace(0, len(every) - 1, min(len(every), _MOST_BATCHES))}
        )
    wrong = [size for size in asked if not low <= size <= high]
    if wrong or not asked:
        named = f"--batch {wrong[0]} is" if wrong else "--batch names no size"
        raise UsageError(f"{named} outside of what this engine takes; choose from {low} to {high}")
    return sorted(set(asked))


def _starts(directory: Path, threads: int | None) -> tuple[Start, Start]:
    """A cold start and the warm start that follows it, with their own cache."""
    with tempfile.TemporaryDirectory(prefix="rescompile-bench-") as cache:
        environment = {name: value for name, value in os.environ.items() if name != SWITCH}
        environment["RESCOMPILE_CACHE"] = cache
        cold = start_once(directory, environment, threads=threads)
        return cold, start_once(directory, environment, threads=threads)


def engine_facts(directory: Path, manifest: Manifest, size: Size | None = None) -> EngineFacts:
    """Describe the engine from its manifest and build report, fed with images of ``size``."""
    built, fed = read_report(directory), manifest.inputs[0]
    at = "" if manifest.sizes is None else f" at {size_words(size or manifest.preprocess.crop)}"
    return EngineFacts(
        directory=text_of(directory),
        model=manifest.model,
        precision=manifest.precision,
        backend=manifest.backend,
        target=manifest.target,
        batch=str(manifest.batch),
        input=f"{fed.dtype} {fed.layout} {list(fed.shape)}{at}",
        manifest_sha256=manifest.sha256,
        checkpoint_sha256=manifest.checkpoint.sha256,
        bytes=manifest.payload_bytes,
        images=built.images,
        top1=built.top1_engine,
        top1_agreement=built.top1_agreement,
        relative_rms=built.relative_rms,
    )


def _notes_on_runs(results: Sequence[BatchResult]) -> list[str]:
    few = [str(result.batch) for result in results if result.timing.runs < _FEW_RUNS]
    if not few:
        return []
    return [f"p99 of batch {', '.join(few)} is little more than the slowest of fewer than {_FEW_RUNS} runs"]

"""``rescompile profile DIR...``: time by block beside the bytes, operations and floor of that block.

Engines of one network stand side by side, which answers "why is INT8 not faster?". Layers are timed by the engine's
own library and belong to the block whose nodes they compute. A floor is the time that the block's operations or bytes
need at this machine's measured rates.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from calibration.file_names import text_of
from rescompile.backends.base import RunOptions
from rescompile.backends.profiling import LayerTime, open_profiler
from rescompile.errors import EngineError, UsageError
from rescompile.graph.shared.block_names import named_block
from rescompile.manifest import GRAPH, Manifest, read_manifest
from rescompile.measuring.bench import engine_facts
from rescompile.measuring.disturbance import Watch
from rescompile.measuring.origin import origin
from rescompile.measuring.profile_findings import findings
from rescompile.measuring.profile_report import BlockProfile, EngineProfile, LayerProfile, ProfileReport
from rescompile.measuring.race import Contender, race
from rescompile.measuring.roofline import Roofline, measure_roofline
from rescompile.measuring.timing import Timing
from rescompile.optional import extras_for
from rescompile.progress import Progress, StageClock
from rescompile.report import BlockWork, read_report
from rescompile.runtime.golden import golden_batch
from rescompile.runtime.loading import load

ROUNDS = 5
FEWEST_RUNS, MOST_RUNS = 3, 200
"""Runs of one round."""
_INTEGER = ("u8", "i8", "")
"""Types of an integer layer; empty where the library does not say."""
DEFAULT_SECONDS = 5.0


@dataclass
class _Subject:
    """One engine being profiled."""

    directory: Path
    manifest: Manifest
    work: dict[str, BlockWork]
    rounds: list[dict[str, LayerTime]] = field(default_factory=list)
    """Layers by name, in the order of execution."""


def profile(
    directories: Sequence[Path],
    *,
    batch: int = 1,
    seconds: float = DEFAULT_SECONDS,
    threads: int | None = None,
    roofline: Roofline | None = None,
    progress: Progress | None = None,
) -> ProfileReport:
    """Time the layers of every engine in ``directories``, in turns.

    Args:
        directories: engine directories of one network, one or more.
        batch: images of one call.
        seconds: for each engine, half of it with counters on.
        threads: CPU threads; None leaves the choice to the library.
        roofline: the machine's rates; None measures them.
        progress: told what runs.

    Raises:
        UsageError: the networks differ, an engine does not take the batch, or a backend cannot time its layers.
        EngineError: an engine is damaged, or gives a wrong answer.
        BackendUnavailable: an engine cannot run on this machine.
    """
    clock, watch = StageClock(progress), Watch()
    subjects = [_subject(directory, batch) for directory in directories]
    _same_network(subjects)
    with clock.stage("roofline"):
        rates = roofline or measure_roofline(threads=threads)
    with clock.stage("engines"):
        walls = _race(subjects, batch, seconds / 2 * len(subjects), threads)
    with clock.stage("layers"):
        _count(subjects, walls, batch, seconds / 2, threads)
    engines = tuple(_profiled(s, wall, rates) for s, wall in zip(subjects, walls, strict=True))
    named = {text_of(s.directory): wall for s, wall in zip(subjects, walls, strict=True)}
    return ProfileReport(
        batch=batch,
        origin=origin(threads),
        roofline=rates,
        engines=engines,
        findings=tuple(findings(engines, rates)),
        notes=tuple(watch.notes(named)),
    )


def _subject(directory: Path, batch: int) -> _Subject:
    manifest = read_manifest(directory)
    low, high = manifest.batch.min, manifest.batch.max
    if not low <= batch <= high:
        raise UsageError(f"--batch {batch} is outside of what {directory} takes; choose from {low} to {high}")
    work = {block.block: block.times(batch) for block in _work(directory)}
    return _Subject(directory, manifest, work)


def _work(directory: Path) -> tuple[BlockWork, ...]:
    """The work of each block for one image, from the build report; engines of older versions have it in their graph
    only."""
    if recorded := read_report(directory).work:
        return recorded
    path = directory / GRAPH
    if not path.is_file():
        raise EngineError(f"{path} is not there, so its blocks are not known; build the engine again")
    with extras_for("profiling an engine of an older version"):
        from rescompile.graph.shared.onnx_file import read_graph
        from rescompile.measuring.work import work_of

    return work_of(read_graph(path), 1)


def _same_network(subjects: Sequence[_Subject]) -> None:
    first = subjects[0]
    for other in subjects[1:]:
        if list(other.work) != list(first.work):
            raise UsageError(
                f"{first.directory} is a {first.manifest.model} and {other.directory} a {other.manifest.model}; "
                "profile engines of one network together"
            )


def _race(subjects: Sequence[_Subject], batch: int, seconds: float, threads: int | None) -> list[Timing]:
    engines = [load(subject.directory, options=RunOptions(threads=threads)) for subject in subjects]
    try:
        contenders = {}
        for index, (subject, engine) in enumerate(zip(subjects, engines, strict=True)):
            images, check = golden_batch(subject.directory, subject.manifest, batch)
            contenders[str(index)] = Contender(partial(engine, images), check)
        return list(race(contenders, seconds=seconds).values())
    finally:
        for engine in engines:
            engine.close()


def _count(
    subjects: Sequence[_Subject], walls: Sequence[Timing], batch: int, seconds: float, threads: int | None
) -> None:
    """Fill ``rounds``: one round of each engine in turn, each with a new profiler."""
    fed = [golden_batch(subject.directory, subject.manifest, batch) for subject in subjects]
    for _ in range(ROUNDS):
        for subject, wall, (images, check) in zip(subjects, walls, fed, strict=True):
            runs = max(FEWEST_RUNS, round(1e3 * seconds / ROUNDS / wall.p50))
            profiler = open_profiler(subject.directory, subject.manifest, threads=threads)
            try:
                logits, layers = profiler(images, min(runs, MOST_RUNS))
            finally:
                profiler.close()
            check(logits)
            subject.rounds.append({layer.name: layer for layer in layers})


def _profiled(subject: _Subject, wall: Timing, rates: Roofline) -> EngineProfile:
    # a layer about as short as the clock's tick is missing in some rounds
    every = {name: layer for found in reversed(subject.rounds) for name, layer in found.items()}
    seen = [layer for name, layer in every.items() if _median(subject, [name])]
    blocks = blocks_of_layers(seen, subject.work)
    layers = tuple(
        LayerProfile(
            name=layer.name,
            block=block,
            kind=layer.kind,
            implementation=layer.implementation,
            precision=layer.precision,
            ms=_median(subject, [layer.name]),
        )
        for layer, block in zip(seen, blocks, strict=True)
    )
    return EngineProfile(
        engine=engine_facts(subject.directory, subject.manifest),
        wall=wall,
        layers_ms=_median(subject, list(every)),
        blocks=tuple(_block(block, subject, layers, rates) for block in subject.work),
        layers=layers,
    )


def _median(subject: _Subject, names: Sequence[str]) -> float:
    """Median over the rounds of the sum of the layers ``names``."""
    sums = [sum(found[name].ms for name in names if name in found) for found in subject.rounds]
    return statistics.median(sums)


def blocks_of_layers(layers: Sequence[LayerTime], blocks: Collection[str]) -> list[str]:
    """The block of each layer; a layer that names no node of the graph belongs to the block of the one before it."""
    found: list[str] = []
    for layer in layers:
        named = map(named_block, layer.origins)
        # a layer of two blocks (a quantizer of the next one) belongs to the first
        first = next((block for block in named if block in blocks), None)
        found.append(first or (found[-1] if found else next(iter(blocks))))
    return found


def _block(block: str, subject: _Subject, layers: Sequence[LayerProfile], rates: Roofline) -> BlockProfile:
    own = [layer for layer in layers if layer.block == block]
    work = subject.work[block]
    return BlockProfile(
        block=block,
        ms=_median(subject, [layer.name for layer in own]),
        launches=len(own),
        reformat_ms=sum(layer.ms for layer in own if layer.kind == "reformat"),
        float_layers=tuple(
            layer.name for layer in own if layer.kind == "weighted" and layer.precision not in _INTEGER
        ),
        work=work,
        memory_ms=rates.memory_ms(work.bytes),
        arithmetic_ms=rates.arithmetic_ms(work.float_ops, work.int8_ops),
    )

"""Runs one engine from many threads for a long time: outputs must stay the same to the bit, and memory must not grow.

    python -m benchmarks.soak resnet20-cifar-int8-openvino --threads 8 --reloads 9

Half of the requests are calls, half are submitted. A signal comes every 10 ms. With ``--reloads`` the engine
is closed and loaded again so many times, and each time the process forks while the threads are at work. Prints one JSON
object; the exit code is 0 if no output was wrong and resident memory grew by at most 1 MiB after the warm-up, in which
the engine is loaded as often as afterwards, at most 200 times.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import rescompile
from rescompile.measuring.cold_start import resident_bytes
from rescompile.runtime.engine import Engine

IMAGES = 16
"""Number of different images, so that an output that goes to the wrong caller is noticed."""
ALLOWED_GROWTH_MIB = 1.0
"""Allowance for the allocator, through which hundreds of MiB pass."""
WARM_UP = 1000
WARM_RELOADS = 200
"""Until then the allocator keeps a little more of each load; afterwards memory stays as it is."""
SIGNAL_EVERY = 0.01


class SoakResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run."""

    model: str
    backend: str
    threads: int
    inferences: int
    reloads: int
    wrong: int
    failed: int
    seconds: float
    resident_mib: float
    growth_mib: float

    def passed(self) -> bool:
        """Whether no output was wrong and memory did not grow."""
        return not self.wrong and not self.failed and self.growth_mib <= ALLOWED_GROWTH_MIB


def soak(load: Callable[[], Engine], *, threads: int, inferences: int, reloads: int = 0) -> SoakResult:
    """Run ``inferences`` single images from ``threads`` threads, on engines that are loaded one after the other."""
    with load() as engine:
        images = random_images(engine, IMAGES)
        expected = [engine(image[None]) for image in images]
        _run(engine, images, expected, threads=threads, inferences=min(max(inferences // 10, 1), WARM_UP))
    for _ in range(min(reloads, WARM_RELOADS)):
        with load() as engine, _signals():
            _run(engine, images, expected, threads=threads, inferences=IMAGES, forks=True)
    before, start = resident_bytes(), time.perf_counter()
    found = _Counts()
    for number in range(reloads + 1):
        part = inferences * (number + 1) // (reloads + 1) - inferences * number // (reloads + 1)
        with load() as engine, _signals():
            found.add(_run(engine, images, expected, threads=threads, inferences=part, forks=reloads > 0))
    return SoakResult(
        model=engine.manifest.model,
        backend=engine.manifest.backend,
        threads=threads,
        inferences=len(found),
        reloads=reloads,
        wrong=found.count("wrong"),
        failed=found.count("failed"),
        seconds=time.perf_counter() - start,
        resident_mib=before / 2**20,
        growth_mib=(resident_bytes() - before) / 2**20,
    )


@contextmanager
def _signals() -> Iterator[None]:
    signal.signal(signal.SIGALRM, nothing)
    signal.setitimer(signal.ITIMER_REAL, SIGNAL_EVERY, SIGNAL_EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def nothing(*_: Any) -> None:
    """What SIGALRM does from now on: a late one would end the process if its default action were restored."""


def _fork() -> None:
    """Fork a process that ends at once, without what a Python process does at its end."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def random_images(engine: Engine, count: int) -> NDArray[Any]:
    """``count`` images in the engine's input format, the same every time."""
    fed = engine.manifest.inputs[0]
    rng = np.random.default_rng(0)
    shape = (count, *fed.shape[1:])
    if fed.dtype == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)


class _Counts:
    """Counts of right, wrong and failed inferences; takes the same memory for any number of them."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, counts: dict[str, int] | _Counts) -> None:
        for name, number in (counts._counts if isinstance(counts, _Counts) else counts).items():
            self._counts[name] = self._counts.get(name, 0) + number

    def count(self, name: str) -> int:
        return self._counts.get(name, 0)

    def __len__(self) -> int:
        return sum(self._counts.values())


def _run(
    engine: Engine,
    images: NDArray[Any],
    expected: Sequence[NDArray[np.float32]],
    *,
    threads: int,
    inferences: int,
    forks: bool = False,
) -> _Counts:
    turns = itertools.count()  # next() is one step of the interpreter, so it needs no lock

    def work() -> dict[str, int]:
        counts = {"right": 0, "wrong": 0, "failed": 0}
        while (turn := next(turns)) < inferences:
            which = turn % IMAGES
            image = images[which : which + 1]
            try:
                answer = engine.submit(image).result() if turn % 2 else engine(image)
            except rescompile.RescompileError:
                counts["failed"] += 1
                continue
            counts["right" if np.array_equal(answer, expected[which]) else "wrong"] += 1
        return counts

    findings = _Counts()
    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        if forks:
            _fork()
        for future in working:
            findings.add(future.result())
    return findings


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--inferences", type=int, default=100_000)
    parser.add_argument(
        "--reloads", type=int, default=0, help="how often the engine is closed and loaded again"
    )
    parser.add_argument("--hint", choices=("latency", "throughput"), default="throughput")
    asked = parser.parse_args(words)
    if asked.threads < 1 or asked.inferences < 1 or asked.reloads < 0:
        parser.error("--threads and --inferences must be 1 or more, --reloads 0 or more")
    try:
        found = soak(
            lambda: rescompile.load(asked.engine, hint=asked.hint),
            threads=asked.threads,
            inferences=asked.inferences,
            reloads=asked.reloads,
        )
    except rescompile.RescompileError as error:
        parser.exit(1, f"error: {error}\n")
    print(msgspec.json.encode(found).decode())
    return 0 if found.passed() else 1


if __name__ == "__main__":
    raise SystemExit(main())

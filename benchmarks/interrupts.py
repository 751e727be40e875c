"""Interrupts one engine at random moments, as Ctrl-C does: afterwards it must answer as before.

    python -m benchmarks.interrupts resnet20-cifar-int8-openvino

A timer of 1 µs to a little more than the time of a call raises an exception somewhere in the call. A call that takes a
minute means that the interrupt took something away for ever: the stacks are printed, and the process ends with 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import rescompile
from benchmarks.soak import nothing, random_images
from rescompile.runtime.engine import Engine

WEDGED = 60
"""Seconds after which a call will never return."""
BETWEEN = 100
"""Interrupts between two looks at the answers."""
CALLS = 1000
"""An exception in a callback of the interpreter is lost, so calls do not go on for ever."""


class _Interrupt(BaseException):
    """An interrupt, which nothing but this program catches."""


class InterruptsResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run."""

    model: str
    backend: str
    interrupts: int
    wrong: int
    longest_timer_us: int
    seconds: float


def interrupt(engine: Engine, interrupts: int) -> InterruptsResult:
    """Interrupt calls of ``engine``."""
    image = random_images(engine, 1)
    expected = engine(image)
    start = time.perf_counter()
    for _ in range(CALLS):
        engine(image)
    longest = max(2, round(1.2e6 * (time.perf_counter() - start) / CALLS))
    done = wrong = 0
    signal.signal(signal.SIGALRM, _raise)
    start = time.perf_counter()
    try:
        while done < interrupts:
            faulthandler.dump_traceback_later(WEDGED, exit=True, file=sys.__stderr__)
            for _ in range(min(BETWEEN, interrupts - done)):
                done += _interrupted(engine, image, 1 + done % longest)
            wrong += not np.array_equal(engine(image), expected)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, nothing)
    return InterruptsResult(
        model=engine.manifest.model,
        backend=engine.manifest.backend,
        interrupts=done,
        wrong=wrong,
        longest_timer_us=longest,
        seconds=time.perf_counter() - start,
    )


def _raise(*_: Any) -> None:
    raise _Interrupt


def _interrupted(engine: Engine, image: Any, microseconds: int) -> int:
    """1 if calls were interrupted, 0 if the interrupt was lost."""
    try:
        signal.setitimer(signal.ITIMER_REAL, microseconds * 1e-6)
        for _ in range(CALLS):
            engine(image)
        # calls were quicker than expected: the interrupt must not come after this function
        while signal.getitimer(signal.ITIMER_REAL)[0] > 0:
            time.sleep(1e-4)
        time.sleep(1e-3)
    except _Interrupt:
        return 1
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interrupts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("--interrupts", type=int, default=100_000)
    asked = parser.parse_args(words)
    if asked.interrupts < 1:
        parser.error("--interrupts must be 1 or more")
    try:
        engine = rescompile.load(asked.engine)
    except rescompile.RescompileError as error:
        parser.exit(1, f"error: {error}\n")
    with engine:
        found = interrupt(engine, asked.interrupts)
    print(msgspec.json.encode(found).decode())
    return 1 if found.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

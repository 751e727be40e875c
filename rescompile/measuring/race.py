"""Calls timed in turns, A B C, A B C, …, so that a drifting clock or a busy neighbour meets all of them alike.

No call is timed before its answer was found right, and the last answer of the race is looked at again: a wrong answer
has no time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rescompile.measuring.timing import Timing, timing

FEWEST_ROUNDS = 5
MOST_ROUNDS = 60
TURN_SECONDS = 0.1
"""A contender's turn lasts at least this long, so that a switch between contenders is a small part of it."""
REST_SECONDS = 0.02
"""Before each turn: threads of the contender before, which spin a while for more work, are asleep by then."""
_WARM_CALLS, _WARM_SECONDS = 2, 0.2


@dataclass(frozen=True)
class Contender:
    """A call to be timed; ``check`` raises where its answer is wrong."""

    call: Callable[[], Any]
    check: Callable[[Any], None]


def race(
    contenders: Mapping[str, Contender],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Time all ``contenders`` in turns, in the order in which they are given.

    Args:
        contenders: what to time, by name; one or more.
        seconds: for the timed rounds; a race ends after it, but not before five rounds.
        clock: gives seconds.
        rest: waits so many seconds.

    Raises:
        Exception: whatever a contender's ``check`` raises about its answer.
    """
    each = {name: _warm_up(one, clock) for name, one in contenders.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in contenders}
    answers: dict[str, Any] = {}
    started = clock()
    with _no_garbage_collection():
        for done in range(1, MOST_ROUNDS + 1):
            for name, one in contenders.items():
                rest(REST_SECONDS)
                turn, answers[name] = _turn(one.call, each[name], clock)
                times[name].append(turn)
            if done >= FEWEST_ROUNDS and clock() - started > seconds:
                break
            gc.collect(0)
    for name, one in contenders.items():
        one.check(answers[name])
    return {name: timing(found) for name, found in times.items()}


def _warm_up(one: Contender, clock: Callable[[], float]) -> int:
    """Check the answer, let caches and clocks settle; returns how many runs make up a turn."""
    one.check(one.call())
    calls, began = 0, clock()
    while calls < _WARM_CALLS or clock() - began < _WARM_SECONDS:
        one.call()
        calls += 1
    typical = (clock() - began) / calls
    return max(1, round(TURN_SECONDS / max(typical, 1e-9)))


def _turn(call: Callable[[], Any], count: int, clock: Callable[[], float]) -> tuple[list[float], Any]:
    """Milliseconds of ``count`` runs, and the last answer."""
    found, answer = [], None
    for _ in range(count):
        start = clock()
        answer = call()
        found.append(1e3 * (clock() - start))
    return found, answer


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector would run in the middle of somebody's time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

"""Times calls in turns, B A C, C B A, …, so that a drifting clock or a busy neighbour affects all of them alike.

Each round has an order of its own: what a contender leaves behind (full caches, threads that still spin) hits another
one in each round, not always the same.

Each answer is checked before its call is timed, and again at the end of the race: a wrong answer has no time.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rescompile.measuring.timing import Timing, timing

FEWEST_ROUNDS = 5
MOST_ROUNDS = 60
TURN_SECONDS = 0.1
"""Least length of a contender's turn, so that the switch between contenders is a small part of it."""
REST_SECONDS = 0.05
"""Pause before each turn, in which the spinning threads of the contender before fall asleep."""
_SEED = 0
"""Orders repeat from race to race."""
_WARM_CALLS = 2
"""Least calls before the race; they take two turns at least."""


@dataclass(frozen=True)
class Contender:
    """A call to be timed; ``check`` raises where its answer is wrong."""

    call: Callable[[], Any]
    check: Callable[[Any], None]


def race(
    contenders: Mapping[str, Contender],
    *,
    seconds: float,
    turn: float = TURN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> dict[str, Timing]:
    """Time all ``contenders`` in turns, in another order in each round.

    Args:
        contenders: the calls by name; one or more.
        seconds: length of the timed rounds, of which there are at least five.
        turn: least seconds that a contender runs before the next one does.
        clock: returns seconds.
        rest: waits for a number of seconds.

    Raises:
        Exception: raised by a contender's ``check`` for a wrong answer.
    """
    each = {name: _warm_up(one, clock, turn) for name, one in contenders.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in contenders}
    answers: dict[str, Any] = {}
    order, shuffle = list(contenders), random.Random(_SEED).shuffle
    started = clock()
    with _no_garbage_collection():
        for done in range(1, MOST_ROUNDS + 1):
            shuffle(order)
            for name in order:
                rest(REST_SECONDS)
                runs, answers[name] = _turn(contenders[name].call, each[name], clock)
                times[name].append(runs)
            if done >= FEWEST_ROUNDS and clock() - started > seconds:
                break
            gc.collect(0)
    for name, one in contenders.items():
        one.check(answers[name])
    return {name: timing(found) for name, found in times.items()}


def _warm_up(one: Contender, clock: Callable[[], float], turn: float) -> int:
    """Check the answer and let caches and clocks settle; returns the number of runs in a turn."""
    one.check(one.call())
    calls, began = 0, clock()
    while calls < _WARM_CALLS or clock() - began < 2 * turn:
        one.call()
        calls += 1
    typical = (clock() - began) / calls
    return max(1, round(turn / max(typical, 1e-9)))


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
    """GC pauses would distort timings."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()

"""A pool gives each object to one thread at a time, and never loses one."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rescompile.backends.resource_pool import ResourcePool
from rescompile.errors import BackendError
from tests.waiting import until


def use(pool: ResourcePool[str], seconds: float = 0.0) -> str:
    slot = pool.slot()
    with slot.lock:
        resource = slot.resource()
        time.sleep(seconds)
        return resource


def is_closed(pool: ResourcePool[str]) -> bool:
    try:
        use(pool)
    except BackendError:
        return True
    return False


def test_threads_share_what_is_there() -> None:
    pool = ResourcePool(["one", "two"])
    with ThreadPoolExecutor(8) as threads:
        found = [future.result(120) for future in [threads.submit(use, pool, 0.001) for _ in range(100)]]
    assert set(found) == {"one", "two"}


def test_a_free_one_is_taken_before_one_is_waited_for() -> None:
    pool = ResourcePool(["one", "two"])
    first = pool.slot()
    with first.lock:
        assert pool.slot() is not first
        assert {use(pool) for _ in range(5)} == {"two"}


def test_draining_waits_for_what_is_in_use_and_hands_all_of_it_out_once() -> None:
    pool = ResourcePool(["one", "two"])
    slot = pool.slot()
    with ThreadPoolExecutor(3) as threads:
        with slot.lock:
            taken = slot.resource()
            draining = [threads.submit(pool.drain) for _ in range(2)]
            until(lambda: is_closed(pool))
            with pytest.raises(TimeoutError):
                draining[0].result(timeout=0.05)
            waiting = threads.submit(use, pool)
        drained = sorted(len(future.result(timeout=120)) for future in draining)
        assert isinstance(waiting.exception(timeout=120), BackendError)
    assert taken == "one"
    assert drained == [0, 2]
    assert pool.drain() == []


def test_closing_ends_the_waiting() -> None:
    pool = ResourcePool(["request"])
    slot = pool.slot()
    with ThreadPoolExecutor(2) as threads:
        with slot.lock:
            waiting = [threads.submit(use, pool) for _ in range(2)]
            assert pool.close() == ["request"]
        for future in waiting:
            assert isinstance(future.exception(timeout=120), BackendError)
    with pytest.raises(BackendError, match="closed"):
        use(pool)


INTERRUPTED = """
import signal
from rescompile.backends.resource_pool import ResourcePool

class Interrupt(Exception):
    pass

def interrupt(signum, frame):
    raise Interrupt

signal.signal(signal.SIGALRM, interrupt)
pool, interrupted = ResourcePool(["the only one"]), 0
for count in range(4000):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + count % 60))
        for _ in range(40):
            slot = pool.slot()
            with slot.lock:
                slot.resource()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt:
        interrupted += 1
    assert not pool.slot().lock.locked(), f"lost at interrupt {interrupted}"
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(interrupted)
"""


def test_an_interrupt_at_any_moment_loses_nothing() -> None:
    """Interrupts like Ctrl-C, in a process of its own, which a late signal may end."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False
        )
        assert "lost at interrupt" not in done.stderr
        if done.returncode == 0:
            assert int(done.stdout) > 1000
            return
    pytest.fail(done.stderr)

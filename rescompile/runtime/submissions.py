"""Requests that are answered in threads of the engine's own while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rescompile.errors import EngineError

T = TypeVar("T")
A = TypeVar("A")


class Submissions:
    """At most ``parallel`` threads, started with the first request. Any thread may submit or close."""

    def __init__(self, parallel: int) -> None:
        self._parallel, self._closed = parallel, False
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def submit(self, work: Callable[[A], T], given: A) -> Future[T]:
        """Have ``work(given)`` done by the next idle thread.

        Raises:
            EngineError: it is closed.
        """
        with self._lock:
            if self._closed:
                raise EngineError("this engine is closed; load it again")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="rescompile")
            return self._pool.submit(work, given)

    def close(self) -> None:
        """Finish what was submitted, and take no more; calling it twice is harmless."""
        with self._lock:
            self._closed, pool, self._pool = True, self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

"""Things of which a thread takes an idle one, and waits where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

from rescompile.errors import BackendError

T = TypeVar("T")


class ResourcePool(Generic[T]):
    """The things that nobody uses. Any thread may take one, or close."""

    def __init__(self, things: Sequence[T]) -> None:
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._closed = self._draining = False
        self._count, self._drain = len(things), Lock()
        for thing in things:
            self._queue.put(thing)

    @contextmanager
    def acquire(self) -> Iterator[T]:
        """An idle thing, for the body alone.

        Raises:
            BackendError: they were closed, perhaps while this thread waited.
        """
        thing = self._queue.get()
        try:
            if thing is None or self._closed or self._draining:
                raise BackendError("this engine is closed; load it again")
            yield thing
        finally:
            # behind the end there is only None: it wakes the next one that waits
            self._queue.put(None if self._closed else thing)

    def close(self) -> None:
        """Let nobody take one any more; those in use are dropped when they come back."""
        self._closed = True
        while not self._queue.empty():
            self._queue.get()
        self._queue.put(None)

    def drain(self) -> list[T]:
        """The same, but wait for those in use; returns all of them, and nothing when it is called again."""
        self._draining = True
        with self._drain:
            things = [] if self._closed else [self._queue.get() for _ in range(self._count)]
            self.close()
        return [thing for thing in things if thing is not None]

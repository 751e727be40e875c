"""A pool of reusable objects, from which threads take one or wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Generic, TypeVar

from rescompile.errors import BackendError

T = TypeVar("T")


class ResourcePool(Generic[T]):
    """Blocking pool of reusable objects. Any thread may acquire one, or close the pool."""

    def __init__(self, resources: Sequence[T]) -> None:
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._closed = self._draining = False
        self._count, self._drain = len(resources), Lock()
        for resource in resources:
            self._queue.put(resource)

    @contextmanager
    def acquire(self) -> Iterator[T]:
        """Take an object for the body, waiting until one is free; raises BackendError once the pool is closed."""
        resource = self._queue.get()
        try:
            if resource is None or self._closed or self._draining:
                raise BackendError("this engine is closed; load it again")
            yield resource
        finally:
            # a closed pool holds only None, which wakes the waiting threads one after another
            self._queue.put(None if self._closed else resource)

    def close(self) -> None:
        """Hand out no more objects; those in use are dropped when they come back."""
        self._closed = True
        while not self._queue.empty():
            self._queue.get()
        self._queue.put(None)

    def drain(self) -> list[T]:
        """Close the pool, but wait for the objects in use; returns all objects, and none when it is called again."""
        self._draining = True
        with self._drain:
            resources = [] if self._closed else [self._queue.get() for _ in range(self._count)]
            self.close()
        return [resource for resource in resources if resource is not None]

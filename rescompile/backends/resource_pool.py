"""A pool of reusable objects, each with its own lock, so that one thread at a time uses it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from threading import Lock
from typing import Generic, TypeVar

from rescompile.errors import BackendError

T = TypeVar("T")


class Slot(Generic[T]):
    """One object and its lock. Write ``with slot.lock: use(slot.resource())``.

    Only the ``with`` of a lock surely gives back what it took. In a method that takes the lock, an exception of a
    signal handler may come before the caller has it, and the object would be lost.
    """

    def __init__(self, resource: T) -> None:
        self.lock = Lock()
        self._resource: T | None = resource

    def resource(self) -> T:
        """Return the object; the caller must hold the lock. Raises BackendError once the pool is closed."""
        if self._resource is None:
            raise BackendError("this engine is closed; load it again")
        return self._resource

    def drop(self) -> T | None:
        """Forget the object, and return it; its present user keeps it until it is done."""
        resource, self._resource = self._resource, None
        return resource


class ResourcePool(Generic[T]):
    """Reusable objects for any number of threads. Any thread may close the pool."""

    def __init__(self, resources: Sequence[T]) -> None:
        self._slots = [Slot(resource) for resource in resources]
        self._turns = count()

    def slot(self) -> Slot[T]:
        """A free slot; if all are in use, the next one in turn."""
        free = next((slot for slot in self._slots if not slot.lock.locked()), None)
        return free or self._slots[next(self._turns) % len(self._slots)]

    def close(self) -> list[T]:
        """Hand out no more objects, and return those not returned before; waiting threads get a BackendError."""
        resources = [slot.drop() for slot in self._slots]
        return [resource for resource in resources if resource is not None]

    def drain(self) -> list[T]:
        """``close`` the pool, and wait for the objects in use."""
        resources = self.close()
        for slot in self._slots:
            with slot.lock:
                pass
        return resources

"""Number of cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Number of cores that this process may use; a container may limit it."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)

"""Origin of a figure: machine, software, threads, commit, date."""

from __future__ import annotations

import os

import msgspec

from rescompile.environment import describe, now
from rescompile.measuring.git_commit import commit_of

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a figure depends on and that can be read without changing it."""

    date: str
    """UTC, ISO 8601, to the second."""
    commit: str
    device: str
    threads: int
    """The engine's setting or, without one, the cores that this process may use."""
    machine: dict[str, str]
    """From ``rescompile.environment.describe``: processor, instruction sets, memory, versions."""
    settings: dict[str, str]
    """Environment variables that change numbers of threads."""


def origin(threads: int | None = None) -> Origin:
    """This machine and the time now; ``threads`` is the setting of the measured engine."""
    machine = describe()
    return Origin(
        date=now(),
        commit=commit_of(),
        device=machine["cpu"],
        threads=threads or int(machine["cores"]),
        machine=machine,
        settings={name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    )

"""Options that the command passes to its worker process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """One run."""

    device: str
    tiny: bool
    batches: tuple[int, ...]
    deadlines: dict[str, float]
    """The end of each phase, by ``time.monotonic``, which all processes of a machine share; in order."""
    folder: Path
    """The folder of the lock, and of the peers' sockets and logs."""
    tables: Path
    """Folder where the tuning table is written and read."""
    commit: str | None = None
    only: str = "*"
    """Pattern of the cases to run."""
    peers: tuple[str, ...] = ()
    """Names of the workloads that a peer process compiles."""

"""Scripts for the processes that these tests start; it imports little, because each process imports it."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu.gpu_lock import GpuLock
from benchmarks.gpu.options import Options


def dying(connection: Connection, options: Options, finished: set[str], ceilings: Any) -> None:
    """A worker whose second case ends its process, and whose third loses the GPU."""
    for name in ("first", "second", "third", "fourth"):
        if name in finished:
            continue
        connection.send(("begin", name))
        if name == "second":
            os._exit(139)
        if name == "third":
            connection.send(("failed", name, "illegal access"))
            connection.send(("lost", "illegal access"))
            raise SystemExit(3)
        connection.send(("result", "cases", {"name": name, "correct": True}))
        connection.send(("ended", name))
    connection.send(("end",))


def hanging(connection: Connection, options: Options, finished: set[str], ceilings: Any) -> None:
    if not finished:
        connection.send(("begin", "slow"))
        time.sleep(600)
    connection.send(("end",))


def hold(path: Path, ready: Any, enough: Any) -> None:
    with GpuLock(path).held():
        ready.set()
        assert enough.wait(600)

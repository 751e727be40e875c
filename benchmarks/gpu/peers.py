"""The compiling processes: started by the command in order of importance, asked by its worker when they are ready."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu.environment import ROOT
from benchmarks.gpu.peer import socket_path, status_path, write_status
from benchmarks.gpu.workloads import Workload

AT_ONCE = 2
"""Peers that compile at the same time; each uses one core for long and all of them for a while."""


@dataclass
class PeerProcesses:
    """Starts peers for a list of workloads, ``AT_ONCE`` at a time, and ends them."""

    folder: Path
    device: str
    tiny: bool
    waiting: list[Workload]
    running: dict[Workload, subprocess.Popen[bytes]] = field(default_factory=dict)

    def poll(self) -> None:
        """Start as many as may compile now, and note those that ended without a word."""
        for workload, process in self.running.items():
            if process.poll() is not None and not status_path(self.folder, workload.name).exists():
                reason = f"its process ended with code {process.returncode}"
                write_status(self.folder, workload.name, state="failed", reason=reason)
        compiling = sum(
            process.poll() is None and not status_path(self.folder, workload.name).exists()
            for workload, process in self.running.items()
        )
        while self.waiting and compiling < AT_ONCE:
            workload = self.waiting.pop(0)
            self.running[workload] = self._started(workload)
            compiling += 1

    def _started(self, workload: Workload) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.gpu.peer", "--kind", workload.kind]
        command += ["--batch", str(workload.batch), "--part", workload.part, "--folder", str(self.folder)]
        command += ["--device", self.device, *(["--tiny"] if self.tiny else [])]
        threads = str(max(1, (os.cpu_count() or 2) // AT_ONCE))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "TORCHINDUCTOR_COMPILE_THREADS": threads,
        }
        log: IO[bytes] = (self.folder / f"{workload.name}.log").open("wb")
        with log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self, patience: float = 5.0) -> None:
        """End every peer: ask it to terminate, and kill it after ``patience`` seconds."""
        self.waiting.clear()
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + patience
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Peer:
    """One peer, as the worker sees it."""

    def __init__(self, folder: Path, workload: Workload) -> None:
        self.folder, self.workload = folder, workload
        self._connection: Connection | None = None

    def status(self) -> dict[str, Any]:
        """``state`` is ``compiling`` (or not started yet), ``ready`` or ``failed``."""
        try:
            found: dict[str, Any] = json.loads(
                status_path(self.folder, self.workload.name).read_text("utf-8")
            )
        except FileNotFoundError:
            return {"state": "compiling"}
        return found

    def ask(self, program: str, count: int, *, patience: float = 60.0) -> tuple[list[float], list[str]]:
        """Milliseconds of ``count`` runs of a program, and notes.

        Raises:
            TimeoutError: no answer.
            EOFError, OSError: the peer is gone.
        """
        if self._connection is None:
            self._connection = self._connected()
        self._connection.send((program, count))
        if not self._connection.poll(patience):
            raise TimeoutError(f"{self.workload.name} gave no answer within {patience:.0f} s")
        times, notes = self._connection.recv()
        return times, notes

    def _connected(self, patience: float = 5.0) -> Connection:
        """A connection; a peer that has just said that it is ready takes a moment to listen."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return Client(str(socket_path(self.folder, self.workload.name)), family="AF_UNIX")
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self) -> None:
        """Let the peer go: it ends, and its memory is free."""
        if self._connection is not None:
            self._connection.send(None)
            self._connection.close()
            self._connection = None


class Remote:
    """A peer's program as a contender."""

    def __init__(self, peer: Peer, program: str) -> None:
        self.peer, self.program = peer, program
        self.notes: list[str] = list(peer.status().get("notes", []))

    def times(self, count: int) -> list[float]:
        """Milliseconds of ``count`` runs in the peer's process."""
        times, notes = self.peer.ask(self.program, count)
        self.notes = list(dict.fromkeys([*self.notes, *notes]))
        return times


def priorities(batches: Sequence[int], blocks: Sequence[str]) -> list[Workload]:
    """Workloads to compile, most important first: those of the bars, a block, then the other batches."""
    largest = max(batches)
    inference = inference_batch(batches)
    first = [Workload("train", largest), Workload("infer", inference)]
    second = [Workload("block", largest, block) for block in blocks]
    train = [Workload("train", batch) for batch in sorted(batches, reverse=True) if batch != largest]
    infer = [Workload("infer", batch) for batch in [1, *sorted(batches)] if batch != inference]
    rest = [item for pair in zip(train, infer, strict=False) for item in pair]
    return list(dict.fromkeys([*first, *second, *rest, *train, *infer]))


def inference_batch(batches: Sequence[int]) -> int:
    """The batch of the inference bars: 128, or the largest where it is not asked for."""
    return 128 if 128 in batches else max(batches)

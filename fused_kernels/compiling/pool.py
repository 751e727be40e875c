"""Compiling on all cores: a pool of worker processes, each replaced when the compiler crashes it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import LifoQueue
from threading import Lock
from typing import IO

from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.variant import Variant

_WORKER = "fused_kernels.compiling.worker"
_START = (
    "import sys; sys.path = [*filter(None, sys.path)]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Runs a module without the working directory on its path, where someone may have put a ``queue.py``."""


def default_jobs() -> int:
    """One process for each core that this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CompilePool:
    """Up to ``jobs`` processes that compile; a process starts when there is work for it.

    Leaving the context, or ``stop``, ends the processes and drops what is not compiled yet.
    """

    def __init__(self, jobs: int | None = None, *, niceness: int = 0, line_info: bool = True) -> None:
        """Set up without starting anything.

        Args:
            jobs: processes; None takes one for each core.
            niceness: lowers the priority of the processes.
            line_info: let machine code name the source files, as a launch does; without it the same source gives
                the same bytes wherever it is installed.
        """
        jobs = jobs or default_jobs()
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="compile")
        self._workers = [_Worker(niceness, line_info) for _ in range(jobs)]
        self._idle: LifoQueue[_Worker] = LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def submit(self, variant: Variant, capability: int) -> Future[Code]:
        """Compile ``variant`` for GPUs of ``capability`` (90 is 9.0); failures are in the result's ``error``."""
        return self._threads.submit(self._compile, variant, capability)

    def _compile(self, variant: Variant, capability: int) -> Code:
        worker = self._idle.get()
        try:
            return worker.compile(variant, capability)
        finally:
            self._idle.put(worker)

    def stop(self) -> None:
        """End the processes, whatever they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _module_folders() -> list[str]:
    """Folders in which a worker finds the modules of this process, without the working directory.

    ``python -m`` puts it in front; it stays only where it holds this package.
    """
    working, package = Path.cwd(), Path(__file__).parents[2]
    folders = (folder for folder in sys.path if folder)
    return [folder for folder in folders if Path(folder).resolve() != working or working == package]


class _Worker:
    """One process; it starts with the first variant, and again after a crash."""

    def __init__(self, niceness: int, line_info: bool) -> None:
        self._niceness, self._line_info = niceness, line_info
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._killed = False
        self._lock = Lock()

    def compile(self, variant: Variant, capability: int) -> Code:
        """Have one variant compiled; one thread at a time may call this."""
        with self._lock:
            if self._killed:
                return Code(error="the pool was stopped")
            process = self._process = self._process or self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((variant, capability), process.stdin)
            process.stdin.flush()
            return Code(*pickle.load(process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            return Code(error=f"the compiler's process ended: {self.end() or 'no reason given'}")

    def _started(self) -> subprocess.Popen[bytes]:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - ``end`` closes it
        settings = {"PYTHONPATH": os.pathsep.join(_module_folders()), "TRITON_INTERPRET": "0"}
        if not self._line_info:
            settings["TRITON_DISABLE_LINE_INFO"] = "1"
        return subprocess.Popen(
            [sys.executable, "-c", _START, _WORKER, str(self._niceness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | settings,
        )

    def kill(self) -> None:
        """End the process in the middle of its work; none starts again."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def end(self) -> str:
        """Clean up after the process; returns the last line that it wrote to stderr."""
        process, errors = self._process, self._errors
        self._process = self._errors = None
        if process is None or errors is None:
            return ""
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        with errors:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

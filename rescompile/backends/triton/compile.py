"""Machine code of every variant that a plan launches, on all cores, without a GPU."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from fused_kernels.aot.pool import default_jobs
from fused_kernels.aot.targets import Target
from fused_kernels.aot.variant import Variant
from rescompile.backends.base import Progress
from rescompile.backends.triton.worker import Code
from rescompile.errors import BackendError

_WORKER = "rescompile.backends.triton.worker"


def compile_variants(
    variants: Sequence[Variant], target: Target, progress: Progress | None = None
) -> list[Code]:
    """Machine code of ``variants``, in their order. Triton's cache makes a second build quick.

    Raises:
        BackendError: a kernel does not compile, or needs more shared memory than the target has.
    """
    found: dict[int, Code] = {}
    answers: SimpleQueue[tuple[int, Code] | None] = SimpleQueue()
    jobs = min(default_jobs(), len(variants))
    workers = [_Worker(list(enumerate(variants))[job::jobs], target, answers) for job in range(jobs)]
    try:
        running = len(workers)
        while running:
            answer = answers.get()
            if answer is None:
                running -= 1
                continue
            position, code = answer
            _check(code, variants[position], target)
            found[position] = code
            if progress is not None:
                progress(len(found), len(variants))
    finally:
        said = [worker.stop() for worker in workers]
    if len(found) < len(variants):
        missing = next(index for index in range(len(variants)) if index not in found)
        words = next((text for text in said if text), "no reason given")
        raise BackendError(
            f"Triton's compiler ended at {variants[missing].kernel} for {target.name}: {words}"
        )
    return [found[index] for index in range(len(variants))]


def _check(code: Code, variant: Variant, target: Target) -> None:
    if code.error:
        raise BackendError(f"Triton cannot compile {variant.kernel} for {target.name}: {code.error}")
    if code.shared_bytes > target.shared_limit:
        raise BackendError(
            f"{variant.kernel} needs {code.shared_bytes:,} bytes of shared memory, {target.name} has "
            f"{target.shared_limit:,}; please report this network"
        )


class _Worker:
    """A process with its share of the work, and a thread that listens to it."""

    def __init__(
        self, work: list[tuple[int, Variant]], target: Target, answers: SimpleQueue[tuple[int, Code] | None]
    ) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", _WORKER, target.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "TRITON_INTERPRET": "0"},
        )
        self._thread = Thread(target=self._listen, args=(work, answers), daemon=True)
        self._thread.start()

    def stop(self) -> str:
        """End the process; returns the last line that it said on stderr."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        with self._errors as errors:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _listen(self, work: Any, answers: SimpleQueue[tuple[int, Code] | None]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with self._process.stdin as asked:
                pickle.dump(work, asked)
            with self._process.stdout as answered:
                while True:
                    position, fields = pickle.load(answered)
                    answers.put((position, Code(*fields)))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            # the work is done, or the process is gone: who waits counts the answers
            pass
        finally:
            answers.put(None)

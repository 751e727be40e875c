"""Callbacks of TensorRT: a logger that collects messages, a monitor that reports progress.

Their base classes belong to ``tensorrt`` or ``tensorrt_rtx``, so the classes are made when the module is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rescompile.backends.base import Progress

MOST_NOTES = 3
_STEPS = 1000


def joined_messages(messages: Iterable[str]) -> str:
    """The different ``messages`` in one line."""
    flat = dict.fromkeys(" ".join(message.split()) for message in messages)
    return "; ".join(flat) or "it gave no reason"


def make_logger(trt: Any) -> Any:
    """A logger that keeps ``errors`` and ``warnings`` (lists of text) and drops the rest."""
    severity = trt.ILogger.Severity

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif level == severity.WARNING:
                self.warnings.append(message)

        def notes(self) -> tuple[str, ...]:
            """The first few different warnings, and how many others there were."""
            different = list(dict.fromkeys(" ".join(message.split()) for message in self.warnings))
            rest = len(different) - MOST_NOTES
            more = (f"{self_name}: {rest} more warnings",) if rest > 0 else ()
            return (*(f"{self_name}: {message}" for message in different[:MOST_NOTES]), *more)

    self_name = trt.__name__
    return Collector()


def make_monitor(trt: Any, progress: Progress | None) -> Any:
    """A monitor that calls ``progress``; an exception there cancels the build, and ``raise_pending`` raises it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._phases = Phases()
            self._pending: BaseException | None = None
            self._reported = -1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.complete(phase_name, step)
            return self._report()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)
            self._report()

        def raise_pending(self) -> None:
            if self._pending is not None:
                raise self._pending

        def _report(self) -> bool:
            done = int(self._phases.fraction() * _STEPS)
            if progress is None or done <= self._reported or self._pending is not None:
                return self._pending is None
            self._reported = done
            try:
                progress(done, _STEPS)
            except BaseException as error:  # it must not travel through C++
                self._pending = error
            return self._pending is None

    return Monitor()


class Phases:
    """Progress through nested phases of several steps; an inner phase is part of the outer phase's next step."""

    def __init__(self) -> None:
        self._open: list[tuple[str, int, int]] = []
        self._finished = False

    def start(self, name: str, steps: int) -> None:
        """Start ``name`` inside the innermost running phase."""
        self._open.append((name, max(1, steps), 0))

    def complete(self, name: str, step: int) -> None:
        """Note that step number ``step`` (from 0) of ``name`` is done."""
        self._open = [(n, total, step + 1 if n == name else done) for n, total, done in self._open]

    def finish(self, name: str) -> None:
        """End ``name`` and the phases inside it."""
        names = [phase[0] for phase in self._open]
        if name in names:
            del self._open[len(names) - 1 - names[::-1].index(name) :]
        self._finished = not self._open

    def fraction(self) -> float:
        """The part of the outermost phase that is done, from 0 to 1."""
        inner = 1.0 if self._finished else 0.0
        for _, total, done in reversed(self._open):
            inner = min(1.0, (done + inner) / total)
        return inner

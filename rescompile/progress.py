"""Wall time and peak memory of each stage of a build, and the interface through which progress is shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from calibration.memory import free_memory
from rescompile.report import StageRecord
from rescompile.training_report import EpochRecord

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


SHOWN: ContextVar[bool] = ContextVar("SHOWN", default=True)
"""Whether the terminal shows progress; ``--quiet`` sets it to False."""


class Progress(Protocol):
    """Receives the progress of a build, stage by stage."""

    def planned(self, images: Mapping[str, int]) -> None:
        """Stages whose steps are images, with the number of these, before the first of them begins."""

    def stage_started(self, name: str) -> None:
        """Stage ``name`` begins, after the one before it has ended."""

    def advanced(self, done: int, total: int) -> None:
        """The running stage has finished ``done`` of ``total`` steps; ``total`` is 0 if the number is not known.

        May be called from another thread than the other methods.
        """

    def stage_finished(self, record: StageRecord) -> None:
        """The running stage ended well."""

    def stage_failed(self, name: str) -> None:
        """The running stage raised an exception, which goes on to the caller."""


class Silent:
    """Progress that shows nothing."""

    def planned(self, images: Mapping[str, int]) -> None:
        """Show nothing."""

    def stage_started(self, name: str) -> None:
        """Show nothing."""

    def advanced(self, done: int, total: int) -> None:
        """Show nothing."""

    def stage_finished(self, record: StageRecord) -> None:
        """Show nothing."""

    def stage_failed(self, name: str) -> None:
        """Show nothing."""


class StageClock:
    """Measures the stages of one build, which run one after the other, each at most once."""

    def __init__(self, observer: Progress | None = None) -> None:
        self._observer: Progress = observer or Silent()
        self._records: list[StageRecord] = []
        self._running: str | None = None

    @property
    def records(self) -> tuple[StageRecord, ...]:
        """The finished stages in order, without those that raised."""
        return tuple(self._records)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body as stage ``name``.

        Raises:
            RuntimeError: another stage is running (peak memory is measured for one at a time), or ``name``
                was used before.
        """
        if self._running is not None:
            raise RuntimeError(f"stage '{name}' was started inside '{self._running}': stages do not nest")
        if name in {record.name for record in self._records}:
            raise RuntimeError(f"stage '{name}' ran already: every stage has its own name")
        self._running = name
        self._observer.stage_started(name)
        free_memory()
        reset_peak_memory()
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self._running = None
            self._observer.stage_failed(name)
            raise
        record = StageRecord(name, time.perf_counter() - start, peak_memory_bytes())
        self._running = None
        self._records.append(record)
        self._observer.stage_finished(record)


def reset_peak_memory() -> None:
    """Start a new measurement of the peak where the system supports that (Linux)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Largest resident set of this process since ``reset_peak_memory``, in bytes, without child processes.

    Where /proc has no VmHWM, or a process may not reset it, this is the peak since the process began: an upper
    bound. 0 where the system does not report memory (Windows).
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return _peak_of_process()


def _peak_of_process() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class TrainingProgress(Protocol):
    """Receives the progress of a training."""

    def begun(self, name: str, total: int, done: int) -> None:
        """The training ``name`` of ``total`` steps begins, or goes on after ``done``."""

    def stepped(self, done: int, loss: float, error: float, images_per_second: float) -> None:
        """``done`` steps are finished; loss and error (percent) are means since the last checkpoint."""

    def recorded(self, record: EpochRecord) -> None:
        """A checkpoint was written."""


class SilentTraining:
    """Progress of a training that shows nothing."""

    def begun(self, name: str, total: int, done: int) -> None:
        """Show nothing."""

    def stepped(self, done: int, loss: float, error: float, images_per_second: float) -> None:
        """Show nothing."""

    def recorded(self, record: EpochRecord) -> None:
        """Show nothing."""

"""Terminal output of ``train`` and ``experiment``: a bar on stderr, and the result as aligned lines."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.text import Text

from rescompile.presenting.html.experiment_page import has_paper, headline
from rescompile.presenting.terminal.table import columns
from rescompile.progress import SHOWN
from rescompile.training_report import EpochRecord, ExperimentReport, TrainingReport
from rescompile.wording import duration, plain


def print_training(report: TrainingReport) -> None:
    """The best and the last state, and where the files are."""
    best, last = report.best, report.last
    rows = [
        ("network", f"{report.model}, {report.parameters:,} parameters"),
        ("test error", f"{best.test_error:.2f} % at step {best.step}, {last.test_error:.2f} % at the end"),
        ("training error", f"{last.train_error:.2f} % at the end"),
        ("time", duration(sum(record.seconds for record in report.history))),
        *(("note", note) for note in report.notes),
        ("weights", f"{report.directory}/best.safetensors"),
        ("page", f"{report.directory}/report.html"),
        ("next", f"rescompile build --weights {report.directory}/best.safetensors"),
    ]
    print(*map(plain, columns(rows)), sep="\n")


class TerminalTraining:
    """Shows a training on stderr: a bar with loss, error, speed and time left; and one line for each checkpoint."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, quiet=not SHOWN.get())
        self._bar: RichBar | None = None
        self._task = TaskID(0)
        self._name = ""

    def __enter__(self) -> TerminalTraining:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def begun(self, name: str, total: int, done: int) -> None:
        """Show the bar."""
        self.__exit__(None, None, None)
        self._name = name
        if done:
            self._say(f"{name}: goes on after step {done}")
        if not self._console.is_terminal or self._console.quiet:
            return
        self._bar = RichBar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.3f}  error {task.fields[error]:.1f} %  {task.fields[speed]:,.0f} images/s"
            ),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(
            plain(name), total=total, completed=done, loss=0.0, error=100.0, speed=0.0
        )
        self._bar.start()

    def stepped(self, done: int, loss: float, error: float, images_per_second: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, loss=loss, error=error, speed=images_per_second)

    def recorded(self, record: EpochRecord) -> None:
        """Print the line of a checkpoint."""
        self._say(
            f"{self._name}: epoch {record.epoch:.4g}, step {record.step}, loss {record.train_loss:.4g}, "
            f"error {record.train_error:.2f} %, test error {record.test_error:.2f} %, "
            f"{record.images_per_second:,.0f} images/s"
        )

    def _say(self, line: str) -> None:
        self._console.print(Text(plain(line)), soft_wrap=True, highlight=False)


def print_experiment(report: ExperimentReport, directory: Path) -> None:
    """The errors of each network, and where the page is."""
    width = 4 if has_paper(report) else 3
    rows = [("network", "training error", "test error", "paper, all of CIFAR-10")[:width]]
    rows += [
        (
            network.name,
            f"{network.train_error:.2f} %",
            f"{network.test_error:.2f} %",
            "" if network.paper_error is None else f"{network.paper_error:.2f} %",
        )[:width]
        for network in report.networks
    ]
    print(
        headline(report),
        *map(plain, columns(rows)),
        f"page  {plain(str(directory / 'report.html'))}",
        sep="\n",
    )


class TerminalExperiment:
    """Shows an experiment on stderr: one line for each training that has ended."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, quiet=not SHOWN.get())
        self._started = time.perf_counter()

    def finished(self, name: str, seed: int, report: TrainingReport, done: int, total: int) -> None:
        """Print the line of one training, with the time that is left if the rest is like it."""
        left = (time.perf_counter() - self._started) / done * (total - done)
        line = (
            f"{done} of {total}: {name}, seed {seed}, training error {report.last.train_error:.2f} %, test error "
            f"{report.last.test_error:.2f} %, about {duration(left)} left"
        )
        self._console.print(Text(plain(line)), soft_wrap=True, highlight=False)

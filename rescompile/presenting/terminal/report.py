"""Terminal output of ``build`` and ``verify``: progress on stderr, and the report as one aligned line per fact.

Each fact has a line of its own so that grep and awk work on it; colours appear on terminals only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar
from rich.text import Text

from rescompile.manifest import REPORT_HTML
from rescompile.presenting import report_lines
from rescompile.presenting.report_lines import Line
from rescompile.presenting.terminal.table import columns
from rescompile.progress import SHOWN
from rescompile.report import NOT_JUDGED, BuildReport, StageRecord
from rescompile.wording import plain, roughly

LINE_SECONDS = 20.0
"""Time between two lines about a running stage, where the output is not a terminal."""
FIRST_SHARE = 8
"""A pace is trusted after one image in so many."""
_STYLES = {"verified": "bold green", "failed": "bold red", NOT_JUDGED: "bold red"}


def print_summary(report: BuildReport, console: Console | None = None) -> None:
    """Print the report on ``console`` (stdout unless told)."""
    console = console or Console(highlight=False)
    for line in summary(report):
        console.print(line, soft_wrap=True, highlight=False)


def summary(report: BuildReport) -> tuple[Text, ...]:
    """The report as lines: verdict, checks, figures, graph, stages, notes, files."""
    headline = Text(plain(f"{report.model} {report_lines.precision(report)} {report.backend}: "))
    headline.append(report.verdict, style=_STYLES.get(report.verdict, "bold yellow"))
    explanation = Text(plain(report_lines.explanation(report)))
    facts = [Text(plain(line)) for line in columns(_facts(report))]
    return (headline, explanation, *_checks(report), *facts)


def _checks(report: BuildReport) -> list[Text]:
    words = ["passed" if check.passed else "failed" for check in report.checks]
    rows = [
        ("check", check.name, f"asked {check.asked}", f"measured {check.measured}", word)
        for check, word in zip(report.checks, words, strict=True)
    ]
    lines = [Text(plain(line)) for line in columns(rows)]
    for line, word in zip(lines, words, strict=True):
        line.stylize("green" if word == "passed" else "bold red", len(line) - len(word))
    return lines


def _facts(report: BuildReport) -> list[Line]:
    return [
        *report_lines.identity(report),
        *report_lines.measurements(report),
        *report_lines.speed(report),
        ("fusion contract", report_lines.lint(report)),
        *(("broken rule", sentence) for sentence in report.lint.violations),
        ("fused adds", report_lines.fused(report)),
        *report_lines.in_floating_point(report.lint.floating),
        *report_lines.fp16_blocks(report),
        *(("tried", _tried(row)) for row in report_lines.frontier(report)),
        *((f"stage {stage.name}", report_lines.stage_value(stage)) for stage in report.stages),
        *(("note", note) for note in report.notes),
        *(("changed", _changed(row)) for row in report_lines.flips(report) if not report.passed),
        *(("next", step) for step in report.advice),
        ("engine directory", report.engine_directory),
        ("report of the build", str(Path(report.engine_directory) / REPORT_HTML)),
    ]


def _changed(row: tuple[str, ...]) -> str:
    """An image whose class changed, as a sentence."""
    image, label, reference, engine = row
    expected = f"labelled {label}, " if label else ""
    return f"{image}: {expected}fp32 {reference}, engine {engine}"


def _tried(row: tuple[str, ...]) -> str:
    """One measured choice of FP16 blocks as a sentence: each cell with its name."""
    int8, reformats, agreement, drop, rms, limits, blocks = row
    return (
        f"{int8} blocks in INT8, reformats {reformats}, agreement {agreement}, drop {drop}, relative RMS {rms}, "
        f"limits {limits}, FP16: {blocks}"
    )


class _TimeLeft(TimeRemainingColumn):
    """The time left, behind the time that passed; nothing where it is not known."""

    def render(self, task: Task) -> Text:
        """Such as ``(0:00:07 left)``."""
        known = task.total is not None and task.time_remaining is not None
        return Text(f"({super().render(task).plain} left)" if known else "")


class TerminalProgress:
    """Shows the running stage on stderr: a bar with the time left on a terminal; elsewhere plain lines, in a long stage
    one in ``LINE_SECONDS``.

    Stages that come later and also run images are estimated from the pace of the running one; a verdict may come before
    the last image. As a context manager it takes the bar away when the block ends, whatever happens inside.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, quiet=not SHOWN.get())
        self._bar: RichBar | None = None
        self._task = TaskID(0)
        self._stage, self._began, self._said = "", 0.0, 0.0
        self._planned: dict[str, int] = {}

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def planned(self, images: Mapping[str, int]) -> None:
        """Remember how many images later stages run."""
        self._planned = dict(images)

    def stage_started(self, name: str) -> None:
        """Show the stage as running."""
        self._stage = name
        self._began = self._said = time.monotonic()
        if not self._console.is_terminal:
            self._say(f"{name}: started")
            return
        self._bar = RichBar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(plain(name), total=None)
        self._bar.start()

    def advanced(self, done: int, total: int) -> None:
        """Move the bar; a ``total`` of 0 is unknown, and the bar only pulses."""
        bar = self._bar  # another thread may remove it meanwhile
        if bar is not None:
            later = f" (then {self._later(done, total)})" if self._later(done, total) else ""
            bar.update(
                self._task, completed=done, total=total or None, description=plain(self._stage + later)
            )
        elif not self._console.is_terminal and total and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            left = roughly(self._pace(done) * (total - done))
            later = f", then {self._later(done, total)}" if self._later(done, total) else ""
            self._say(f"{self._stage}: {done} of {total}, about {left} left{later}")

    def _pace(self, done: int) -> float:
        """Seconds for each step of the running stage."""
        return (time.monotonic() - self._began) / max(done, 1)

    def _later(self, done: int, total: int) -> str:
        """Estimated time of the planned stages behind the running one, which must be one of them."""
        names = list(self._planned)
        # the first images take longer than the others
        known = self._stage in names and done * FIRST_SHARE >= total
        behind = names[names.index(self._stage) + 1 :] if known else []
        return ", ".join(
            f"at most about {roughly(self._pace(done) * self._planned[name])} of {name}" for name in behind
        )

    def stage_finished(self, record: StageRecord) -> None:
        """Replace the bar by a line with the stage's seconds and peak memory."""
        self._stop()
        self._say(f"{record.name}: {report_lines.stage_value(record)}")

    def stage_failed(self, name: str) -> None:
        """Remove the bar and name the stage; the error message says what went wrong."""
        self._stop()
        self._say(f"{name}: failed")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        self._console.print(Text(plain(line)), soft_wrap=True, highlight=False)

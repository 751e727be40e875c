"""What a person at a terminal sees: progress on stderr while a build runs, and the report afterwards.

The summary is one aligned line per fact, so that grep and awk work on it; colours appear on terminals only.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBar
from rich.text import Text

from rescompile.manifest import REPORT_HTML
from rescompile.presenting import report_lines
from rescompile.presenting.report_lines import Line
from rescompile.report import BuildReport, StageRecord
from rescompile.wording import plain

_STYLES = {"verified": "bold green", "failed": "bold red"}


def print_summary(report: BuildReport, console: Console | None = None) -> None:
    """Print the report on ``console`` (stdout unless told)."""
    console = console or Console(highlight=False)
    for line in summary(report):
        console.print(line, soft_wrap=True, highlight=False)


def summary(report: BuildReport) -> tuple[Text, ...]:
    """The report as lines: verdict, checks, figures, graph, stages, notes, files."""
    headline = Text(plain(f"{_title(report)}: "))
    headline.append(report.verdict, style=_STYLES.get(report.verdict, "bold yellow"))
    return (
        headline,
        Text(plain(report_lines.explanation(report))),
        *_checks(report),
        *_aligned(_lines(report)),
    )


def _title(report: BuildReport) -> str:
    return f"{report.model} {report.precision} {report.backend}"


def _checks(report: BuildReport) -> list[Text]:
    rows = [(check.name, f"asked {check.asked}", f"measured {check.measured}") for check in report.checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for check, row in zip(report.checks, rows, strict=True):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        line = Text(plain("  ".join(("check", *cells, ""))))
        line.append("passed" if check.passed else "failed", style="green" if check.passed else "bold red")
        lines.append(line)
    return lines


def _lines(report: BuildReport) -> list[Line]:
    lines = [(name, value) for name, value in report_lines.identity(report)]
    lines += report_lines.measurements(report)
    lines.append(("fusion contract", report_lines.lint(report)))
    lines += [("broken rule", sentence) for sentence in report.lint.violations]
    lines.append(("fused adds", report_lines.fused(report)))
    lines += report_lines.fp16_blocks(report)
    lines += [("tried", _tried(row)) for row in report_lines.frontier(report)]
    lines += [(f"stage {stage.name}", report_lines.stage_value(stage)) for stage in report.stages]
    lines += [("note", note) for note in report.notes]
    lines.append(("engine directory", report.engine_directory))
    lines.append(("build report", str(Path(report.engine_directory) / REPORT_HTML)))
    return lines


def _tried(row: tuple[str, ...]) -> str:
    """One row of the frontier as a value: each cell with its name."""
    int8, reformats, agreement, drop, rms, limits, blocks = row
    return (
        f"{int8} blocks in INT8, reformats {reformats}, agreement {agreement}, drop {drop}, relative RMS {rms}, "
        f"limits {limits}, FP16: {blocks}"
    )


def _aligned(lines: list[Line]) -> list[Text]:
    width = max(len(label) for label, _ in lines)
    return [Text(plain(f"{label:<{width}}  {value}")) for label, value in lines]


class TerminalProgress:
    """Shows the running stage on stderr: a spinner and a bar on a terminal, plain lines elsewhere.

    Use it as a context manager where the display must end with a block, whatever happens inside.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: RichBar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def stage_started(self, name: str) -> None:
        """Show the stage as running."""
        if not self._console.is_terminal:
            self._say(f"{name}: started")
            return
        self._bar = RichBar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(plain(name), total=None)
        self._bar.start()

    def advanced(self, done: int, total: int) -> None:
        """Move the bar; without a known ``total`` it only pulses."""
        bar = self._bar  # may be taken away by the main thread meanwhile
        if bar is not None:
            bar.update(self._task, completed=done, total=total or None)

    def stage_finished(self, record: StageRecord) -> None:
        """Replace the bar by a line with the stage's seconds and peak memory."""
        self._stop()
        self._say(f"{record.name}: {report_lines.stage_value(record)}")

    def stage_failed(self, name: str) -> None:
        """Take the bar away and name the stage; what went wrong is for the error message."""
        self._stop()
        self._say(f"{name}: failed")

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        self._console.print(Text(plain(line)), soft_wrap=True, highlight=False)

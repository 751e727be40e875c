"""How a command ends that has judged an engine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rescompile.report import BuildReport


def end_with_verdict(report: BuildReport, *, json: bool) -> NoReturn:
    """Print the report and end with the exit code that it means."""
    from rescompile.presenting.terminal.report import print_summary

    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_summary(report)
    raise typer.Exit(0 if report else 1)

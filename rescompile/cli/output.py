"""Printing a command's result, as text or as JSON, and ending with the exit code of a verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

from rescompile.wording import write_json

if TYPE_CHECKING:
    from rescompile.report import BuildReport

Result = TypeVar("Result")


FAILED_VERDICT = 3
"""Exit code where an engine was built or measured, and missed a limit."""


def show(result: Result, print_text: Callable[[Result], None], *, json: bool) -> None:
    """Print ``result`` as indented JSON, or as ``print_text`` prints it."""
    if json:
        import msgspec

        write_json(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        print_text(result)


def end_with_verdict(report: BuildReport, *, json: bool) -> NoReturn:
    """Print the report and exit: 0 if the engine passed, 3 if not."""
    from rescompile.presenting.terminal.report import print_summary

    show(report, print_summary, json=json)
    raise typer.Exit(0 if report else FAILED_VERDICT)

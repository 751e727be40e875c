"""Printing a command's result, as text or as JSON, and ending with the exit code of a verdict."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from rescompile.report import BuildReport

Result = TypeVar("Result")


def show(result: Result, print_text: Callable[[Result], None], *, json: bool) -> None:
    """Print ``result`` as indented JSON, or as ``print_text`` prints it."""
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
    else:
        print_text(result)


def end_with_verdict(report: BuildReport, *, json: bool) -> NoReturn:
    """Print the report and exit: 0 if the engine passed, 1 if not."""
    from rescompile.presenting.terminal.report import print_summary

    show(report, print_summary, json=json)
    raise typer.Exit(0 if report else 1)

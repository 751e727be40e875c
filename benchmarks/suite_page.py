"""One HTML page of results of the suites, readable offline: ``python -m benchmarks.suite_page RESULTS.json...``"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import msgspec

from benchmarks.suite_plots import RACED, suite_plots
from benchmarks.suite_results import Results, Row, read_results
from rescompile.errors import RescompileError, reason_of
from rescompile.files import atomic_write, check_output_file, writing
from rescompile.presenting.html import page
from rescompile.presenting.html.measurements_page import origin_lines
from rescompile.presenting.plots.plot import Plot


def plots_of(runs: Sequence[Results]) -> list[Plot]:
    """Every plot of the page, in its order."""
    return [plot for number, run in enumerate(runs, 1) for plot in suite_plots(run, number).values()]


def render_suites(runs: Sequence[Results]) -> str:
    """The page as text, to be written as UTF-8; the same results give the same page."""
    judged = [bar for run in runs for bar in run.bars if bar.passed is not None]
    kept = sum(bool(bar.passed) for bar in judged)
    devices = ", ".join(dict.fromkeys(run.origin.device for run in runs))
    return page.render(
        "suites.html",
        folder=Path(__file__).parent / "templates",
        title="Measurements of the suites",
        tone="",
        headline=f"{kept} of {len(judged)} targets met" if judged else "Measured",
        explanation=f"On {devices}. Answers were checked before they were timed.",
        notes=[note for run in runs for note in run.notes],
        runs=[(run, _cases(run, number)) for number, run in enumerate(runs, 1)],
        origin_lines=origin_lines,
    )


def _cases(run: Results, number: int) -> Iterator[tuple[str, Plot | None, list[Row]]]:
    """Title, plot and rows of each case; only races of whole networks have a plot."""
    plots = suite_plots(run, number)
    for (suite, case), rows in groupby(run.rows, key=lambda row: (row.suite, row.case)):
        yield f"{suite}: {case}", plots.get(case) if suite == RACED else None, list(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, and with ``--plots`` each plot as PNG."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite_page",
        description=__doc__.split(":")[0],
        epilog="example: python -m benchmarks.suite_page benchmarks/results/*/2*.json --output suites.html",
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON files that the suites wrote")
    parser.add_argument("--output", type=Path, default=Path("suites.html"), help="HTML file to write")
    parser.add_argument("--plots", type=Path, help="folder for the plots as PNG; made if missing")
    asked = parser.parse_args(arguments)
    try:
        check_output_file(asked.output)
        runs = [_read(path) for path in asked.results]
        atomic_write(asked.output, render_suites(runs).encode())
        if asked.plots is not None:
            with writing(asked.plots):
                asked.plots.mkdir(parents=True, exist_ok=True)
            for plot in plots_of(runs):
                plot.write(asked.plots / f"{plot.name}.png")
    except RescompileError as error:
        sys.exit(f"error: {error}")
    print(asked.output)


def _read(path: Path) -> Results:
    try:
        return read_results(path)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        sys.exit(
            f"error: {path} is not a result of the suites ({reason_of(error)}); pass a file that they wrote"
        )


if __name__ == "__main__":
    main()

"""The commands that measure and show what was measured: bench, profile, report. Commands; no work."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from rescompile.cli.options import Json
from rescompile.errors import UsageError


def bench(
    directory: Annotated[
        Path | None, typer.Argument(help="Engine directory, the --output of a build.", metavar="[DIR]")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two results of bench: what changed between them beyond noise.", metavar="A B"),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Batch sizes, as 1,8,32; powers of two that the engine takes.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for all batch sizes together.")] = 15.0,
    starts: Annotated[int, typer.Option(min=0, help="Cold and warm starts to measure, each.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; the library's choice.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the result into this JSON file, too.")] = None,
    json: Json = False,
) -> None:
    """Measure an engine: latency percentiles, throughput, cold and warm start, memory.

    Every answer is compared with the golden ones before it is timed.

    Examples:

    - `rescompile bench resnet50-int8-openvino`

    - `rescompile bench resnet50-int8-openvino --batch 1,8 --seconds 30 --output before.json`

    - `rescompile bench --compare before.json after.json`
    """
    if (directory is None) == (compare is None):
        raise UsageError("pass an engine directory to measure, or --compare A.json B.json, and not both")
    if compare is not None:
        _compare(*compare, json=json)
        return
    assert directory is not None
    from rescompile.files import atomic_write, check_output_file
    from rescompile.measuring.bench import bench as run
    from rescompile.presenting.terminal.bench import print_bench
    from rescompile.presenting.terminal.report import TerminalProgress

    check_seconds(seconds)
    if output is not None:
        check_output_file(output)
    sizes = None if batch is None else _sizes(batch)
    with TerminalProgress() as progress:
        report = run(
            directory, batches=sizes, seconds=seconds, starts=starts, threads=threads, progress=progress
        )
    if output is not None:
        atomic_write(output, report.to_json())
    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_bench(report)


def profile(
    directories: Annotated[
        list[Path], typer.Argument(help="Engine directories of one network, side by side.", metavar="DIR...")
    ],
    batch: Annotated[int, typer.Option(min=1, help="Images of one call.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for each engine.")] = 5.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; the library's choice.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the result into this JSON file, too.")] = None,
    json: Json = False,
) -> None:
    """Show where an engine's time goes: each block beside its bytes, operations and floor.

    Several engines of one network answer why one precision is not faster than another.

    Examples:

    - `rescompile profile resnet50-int8-openvino`

    - `rescompile profile resnet50-fp32-openvino resnet50-int8-openvino --batch 8`
    """
    from rescompile.files import atomic_write, check_output_file
    from rescompile.measuring.profile import profile as run
    from rescompile.presenting.terminal.profile import print_profile
    from rescompile.presenting.terminal.report import TerminalProgress

    check_seconds(seconds)
    if output is not None:
        check_output_file(output)
    with TerminalProgress() as progress:
        report = run(directories, batch=batch, seconds=seconds, threads=threads, progress=progress)
    if output is not None:
        atomic_write(output, report.to_json())
    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_profile(report)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="JSON files of bench and profile, in any order.", metavar="RESULTS..."),
    ],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("measurements.html"),
    plots: Annotated[Path | None, typer.Option(help="Folder for the plots as PNG; made if missing.")] = None,
) -> None:
    """Make one HTML page of measurements, readable offline, and its plots as PNG.

    Examples:

    - `rescompile report int8.json fp32.json profile.json --output measurements.html`

    - `rescompile report *.json --plots plots/`
    """
    from rescompile.files import atomic_write, check_output_file, writing
    from rescompile.measuring.measurements import read_measurements
    from rescompile.presenting.html.measurements_page import plots_of, render_measurements

    check_output_file(output)
    found = read_measurements(results)
    atomic_write(output, render_measurements(found).encode())
    print(output)
    if plots is not None:
        with writing(plots):
            plots.mkdir(parents=True, exist_ok=True)
        for plot in plots_of(found):
            path = plots / f"{plot.name}.png"
            plot.write(path)
            print(path)


def check_seconds(seconds: float) -> None:
    """Refuse a time in which nothing can be measured.

    Raises:
        UsageError: it is not above 0, or has no end.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g} is no time to measure in; pass a number above 0")


def _compare(a: Path, b: Path, *, json: bool) -> None:
    from rescompile.measuring.run_comparison import compare_bench
    from rescompile.presenting.terminal.bench import print_bench_comparison

    comparison = compare_bench(a, b)
    if json:
        sys.stdout.write(comparison.to_json().decode())
    else:
        print_bench_comparison(comparison)


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--batch {text} is not understood; write whole numbers, as 1,8,32") from None

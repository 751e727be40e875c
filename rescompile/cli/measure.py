"""The commands that measure speed and show measurements: bench, profile, report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from rescompile.cli.options import Json, parse_size
from rescompile.cli.output import show
from rescompile.errors import UsageError

Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default the library chooses.")]
ResultFile = Annotated[
    Path | None, typer.Option("--output", "-o", help="Also write the result into this JSON file.")
]


def bench(
    directory: Annotated[
        Path | None, typer.Argument(help="Engine directory, the --output of a build.", metavar="[DIR]")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Show what changed beyond noise between two results of bench.", metavar="A B"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Batch sizes, such as 1,8,32; by default, powers of two that the engine takes."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for all batch sizes together.")] = 15.0,
    starts: Annotated[int, typer.Option(min=0, help="Cold starts, and as many warm starts, to measure.")] = 3,
    threads: Threads = None,
    hint: Annotated[
        Literal["latency", "throughput"],
        typer.Option(help="throughput: measure several calls at the same time, as many as the engine takes."),
    ] = "latency",
    streams: Annotated[
        int | None,
        typer.Option(
            min=1, help="Calls that the engine computes at the same time; by default the hint chooses."
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Calls made at the same time; by default, as many as the engine computes."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Side N or size HxW of the images, for an engine that was built with --dynamic-size."
        ),
    ] = None,
    output: ResultFile = None,
    json: Json = False,
) -> None:
    """Measure an engine: latency percentiles, throughput, cold and warm start, memory.

    Outputs are checked against the golden ones before they are timed.

    Examples:

    - `rescompile bench resnet50-int8-openvino`

    - `rescompile bench resnet50-int8-openvino --batch 1,8 --seconds 30 --output before.json`

    - `rescompile bench resnet50-int8-openvino --size 320x256`

    - `rescompile bench --compare before.json after.json`
    """
    if (directory is None) == (compare is None):
        raise UsageError("pass an engine directory to measure, or --compare A.json B.json, and not both")
    if compare is not None:
        from rescompile.measuring.run_comparison import compare_bench
        from rescompile.presenting.terminal.bench import print_bench_comparison

        show(compare_bench(*compare), print_bench_comparison, json=json)
        return
    assert directory is not None
    from rescompile.files import atomic_write
    from rescompile.measuring.bench import bench as run
    from rescompile.presenting.terminal.bench import print_bench
    from rescompile.presenting.terminal.report import TerminalProgress

    _check(seconds, output)
    sizes = None if batch is None else _sizes(batch)
    with TerminalProgress() as progress:
        report = run(
            directory, batches=sizes, seconds=seconds, starts=starts, threads=threads, hint=hint,
            streams=streams, requests=requests, size=parse_size(size, "--size"), progress=progress,
        )  # fmt: skip
    if output is not None:
        atomic_write(output, report.to_json())
    show(report, print_bench, json=json)


def profile(
    directories: Annotated[
        list[Path], typer.Argument(help="Engine directories of one network, side by side.", metavar="DIR...")
    ],
    batch: Annotated[int, typer.Option(min=1, help="Images of one call.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for each engine.")] = 5.0,
    threads: Threads = None,
    output: ResultFile = None,
    json: Json = False,
) -> None:
    """Show the time of each block of an engine beside its bytes, its operations and the least time they need.

    Several engines of one network show why one precision is not faster than another.

    Examples:

    - `rescompile profile resnet50-int8-openvino`

    - `rescompile profile resnet50-fp32-openvino resnet50-int8-openvino --batch 8`
    """
    from rescompile.files import atomic_write
    from rescompile.measuring.profile import profile as run
    from rescompile.presenting.terminal.profile import print_profile
    from rescompile.presenting.terminal.report import TerminalProgress

    _check(seconds, output)
    with TerminalProgress() as progress:
        report = run(directories, batch=batch, seconds=seconds, threads=threads, progress=progress)
    if output is not None:
        atomic_write(output, report.to_json())
    show(report, print_profile, json=json)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="JSON files of bench and profile, in any order.", metavar="RESULTS..."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path(
        "measurements.html"
    ),
    plots: Annotated[Path | None, typer.Option(help="Also write the plots as PNG into this folder.")] = None,
) -> None:
    """Make one HTML page of measurements that can be read offline.

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


def _check(seconds: float, output: Path | None) -> None:
    """Refuse a time in which nothing can be measured, and a file that cannot be written."""
    from rescompile.files import check_output_file

    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g} is not a time to measure in; pass a number above 0")
    if output is not None:
        check_output_file(output)


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--batch {text} is not understood; write whole numbers, such as 1,8,32") from None

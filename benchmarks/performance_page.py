"""``docs/performance.md`` from the raw results in ``benchmarks/results/``: ``python -m benchmarks.performance_page``

The picture of the README lies beside it, in ``docs/images/``.

Every figure comes from a committed JSON file, which its section links to, and has the command that measures it. Missing
measurements are shown as "not measured yet".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.accuracy.results import FORMAT as ACCURACY
from benchmarks.agreement_results import FORMAT as AGREEMENT
from benchmarks.coverage.page import FORMAT as COVERAGE
from benchmarks.profile_section import missing_lines, profile_lines
from benchmarks.result_files import device_name
from benchmarks.rows import RESULTS, Results, Row
from benchmarks.suite_plots import suite_plots
from benchmarks.suite_results import FORMAT as SUITES
from benchmarks.zoo.page import FORMAT as ZOO
from rescompile.files import atomic_write
from rescompile.measuring.bench import FORMAT as BENCH
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.profile_report import FORMAT as PROFILE
from rescompile.measuring.profile_report import ProfileReport
from rescompile.measuring.timing import Timing
from rescompile.presenting.plots.plot import Plot
from rescompile.wording import duration, size

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
PICTURE = Path("images") / "resnet50-latency.png"
"""Where the picture lies, seen from the folder of the page."""
_HEADER = """# Performance

Made by `python -m benchmarks.performance_page` from the files in `benchmarks/results/`; do not edit it. Outputs were
checked before timing, the contenders of one table took turns, and ratios are by image: above 1, ours is faster.
[benchmarks/README.md](../benchmarks/README.md) explains the figures, and [performance-notes.md](performance-notes.md)
the reasons for them.
"""
_COMMANDS = {
    "suites": "pytest benchmarks/ --benchmark-only",
    "bench": "rescompile bench resnet50-int8-openvino --output benchmarks/results/DEVICE/bench-resnet50-int8.json",
    "profile": "rescompile profile resnet50-fp32-openvino resnet50-fp16-openvino resnet50-int8-openvino \\\n"
    "    --output benchmarks/results/DEVICE/profile-resnet50.json",
    "gpu": "python -m benchmarks.gpu_suite",
}
_ELSEWHERE = {ACCURACY, AGREEMENT, COVERAGE, ZOO}  # pages of their own show these
_NOT_YET = "not measured yet"
_REPLACED = {
    "rescompile fp32": "our fp32",
    "ONNX Runtime fp32": "ONNX Runtime fp32",
    "PyTorch eager": "PyTorch fp32",
    "ONNX Runtime int8": "ONNX Runtime INT8",
    "OpenVINO + NNCF int8": "OpenVINO and NNCF INT8",
}
"""Contenders that an INT8 engine replaces, and their names in the first table."""


@dataclass
class Found:
    """Raw results by kind, each with its path: a device's newest file first, and of suites the fastest device."""

    suites: list[tuple[Path, Results]] = field(default_factory=list)
    benches: list[tuple[Path, BenchReport]] = field(default_factory=list)
    profiles: list[tuple[Path, ProfileReport]] = field(default_factory=list)
    kernels: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)


def read_folder(folder: Path) -> Found:
    """All results below ``folder``.

    Raises:
        ValueError: a file is of none of these kinds; the message names it.
    """
    found = Found()
    for path in sorted(folder.glob("*/*.json"), reverse=True):
        try:
            document = json.loads(path.read_bytes())
            if document.get("format") == SUITES:
                found.suites.append((path, msgspec.convert(document, Results)))
            elif document.get("format") == BENCH:
                found.benches.append((path, msgspec.convert(document, BenchReport)))
            elif document.get("format") == PROFILE:
                found.profiles.append((path, msgspec.convert(document, ProfileReport)))
            elif "ceilings" in document:
                found.kernels.append((path, document))
            elif document.get("format") not in _ELSEWHERE:
                raise ValueError("it is of no known format")  # noqa: TRY301
        except (ValueError, msgspec.ValidationError) as error:
            raise ValueError(f"{path} is not a raw result ({error})") from None
    fastest: dict[Path, float] = {}
    for path, results in found.suites:
        fastest.setdefault(path.parent, _int8_latency(results))
    found.suites.sort(key=lambda one: fastest[one[0].parent])
    return found


def _int8_latency(results: Results) -> float:
    """Milliseconds of our INT8 ResNet-50 for one image; infinite where it was not timed."""
    rows = (
        row for row in results.rows if (row.case, row.contender) == ("resnet50 latency", "rescompile int8")
    )
    return next((row.timing.p50 for row in rows if row.timing is not None), inf)


def page(folder: Path, home: Path) -> str:
    """The page that lies in the folder ``home``; the same results below ``folder`` give the same text."""
    found = read_folder(folder)
    on_gpu = [(path, run) for path, run in found.suites if run.origin.machine.get("gpu", "none") != "none"]
    on_cpu = [one for one in found.suites if one not in on_gpu]
    parts = [
        _HEADER,
        *_gains(found.suites),
        "## On a CPU\n",
        *_suites(on_cpu, home, "suites"),
        "## Starts and memory\n",
        *_benches(found.benches, home),
        "## Where the time goes\n",
        *_profiles(found.profiles, home),
        "## On a GPU\n",
        *_suites(on_gpu, home, "gpu"),
        "### Kernels\n",
        *_kernels(found.kernels, home),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _gains(runs: Sequence[tuple[Path, Results]]) -> Iterator[str]:
    """The gain on each device: a call of the INT8 engine at batch 1 beside the calls that it replaces."""
    rows = []
    for _, group in groupby(runs, key=lambda run: run[0].parent.name):
        newest = next(iter(group))[1]
        times: dict[str, dict[str, float]] = {}
        for row in newest.rows:
            if row.suite == "engines" and row.timing is not None and row.case.endswith(" latency"):
                times.setdefault(row.case.removesuffix(" latency"), {})[row.contender] = row.timing.p50
        for network, found in times.items():
            if (ours := found.get("rescompile int8")) is not None:
                ratios = [f"{found[peer] / ours:.1f}x" if peer in found else "" for peer in _REPLACED]
                rows.append(
                    f"| {device_name(newest.origin)} | {network} | {_time(ours)} | {' | '.join(ratios)} |"
                )
    if rows:
        yield "## What INT8 gains\n"
        yield "One image at a time: the median time of our INT8 engine, and how many times as long the others take.\n"
        if any("| resnet50 |" in row for row in rows):
            yield f"![ResNet-50: milliseconds per image of each contender]({PICTURE.as_posix()})\n"
        yield f"| device | network | INT8 | {' | '.join(_REPLACED.values())} |"
        yield "|---|---|---|" + "---|" * len(_REPLACED)
        yield from rows
        yield ""


def picture(folder: Path) -> Plot | None:
    """ResNet-50, one image at a time, on the first device in ``folder``; None where it was not timed."""
    for _, results in read_folder(folder).suites:
        if plot := suite_plots(results).get("resnet50 latency"):
            return plot
    return None


def _command(kind: str) -> str:
    return f"```sh\n{_COMMANDS[kind]}\n```\n"


def _suites(runs: Sequence[tuple[Path, Results]], home: Path, kind: str) -> Iterator[str]:
    yield _command(kind)
    if not runs:
        yield "| case | ours | to the best peer |\n|---|---|---|"
        cases = (
            "ResNet-50 latency",
            "ResNet-50 throughput",
            "ResNet-18, 101 and 152",
            "builds and calibration",
        )
        yield from (f"| {case} | {_NOT_YET} | {_NOT_YET} |" for case in cases)
        yield ""
    for device, group in groupby(runs, key=lambda run: run[0].parent.name):
        path, newest = next(iter(group))
        source = newest.origin
        yield f"### {device_name(source)}, {source.threads} threads\n"
        yield (
            f"[Raw results]({_link(path, home)}), commit `{source.commit}`, {source.date[:10]}, measured with "
            f"`{newest.command}`. Device folder `{device}`.\n"
        )
        yield from _bars(newest)
        for case, rows in groupby(newest.rows, key=lambda row: f"{row.suite}: {row.case}"):
            yield from _case(case, list(rows))
        yield from (f"- {note}" for note in newest.notes)
        yield ""


def _bars(results: Results) -> Iterator[str]:
    if results.bars:
        yield "| promise | asked | measured |\n|---|---|---|"
        for bar in results.bars:
            measured = _NOT_YET if bar.measured is None else f"{bar.measured:.2f}x"
            verdict = {True: ", kept", False: ", **missed**", None: ""}[bar.passed]
            yield f"| {bar.name} | {bar.asked:.2f}x | {measured}{verdict} |"
        yield ""


def _case(case: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"#### {case}\n"
    timed = [row for row in rows if row.timing is not None]
    if timed:
        yield "| contender | batch | a call (95 %) | images/s | to the best peer | of the roofline | memory |"
        yield "|---|---|---|---|---|---|---|"
    for row in timed:
        assert row.timing is not None
        cells = [
            f"**{row.contender}**" if row.ours else row.contender,
            str(row.batch),
            f"{_time(row.timing.p50)}{_interval(row.timing)}",
            "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
            "" if row.ratio_to_best_peer is None else f"{row.ratio_to_best_peer:.2f}x {row.best_peer}",
            "" if row.share_of_roofline is None else f"{100 * row.share_of_roofline:.0f} %",
            "" if row.peak_rss_bytes is None else size(row.peak_rss_bytes),
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from (f"- {row.contender}: skipped: {row.skipped}" for row in rows if row.skipped)
    yield ""


def _time(ms: float) -> str:
    return duration(ms / 1e3) if ms >= 1e3 else f"{ms:.3g} ms"


def _interval(found: Timing) -> str:
    """The interval of the median in words; empty for a single run."""
    return f" ({_time(found.low)} to {_time(found.high)})" if len(found.rounds) > 1 else ""


def _benches(reports: Sequence[tuple[Path, BenchReport]], home: Path) -> Iterator[str]:
    yield _command("bench")
    yield (
        "A [cold start](glossary.md#cold-start) finds no compiled engine in the cache, "
        "a [warm start](glossary.md#warm-start) finds one.\n"
    )
    yield "| engine | device | p50 ms | p99 ms | best images/s | cold start | warm start | peak memory |"
    yield "|---|---|---|---|---|---|---|---|"
    if not reports:
        yield f"| ResNet-50 INT8 | | {' | '.join([_NOT_YET] * 6)} |"
    for path, report in reports:
        engine, latency = report.engine, report.latency.timing
        starts = [
            duration(statistics.median(start.process_seconds for start in kind)) if kind else _NOT_YET
            for kind in (report.cold, report.warm)
        ]
        peak = max((start.peak_rss_bytes for start in report.cold), default=0)
        yield (
            f"| {engine.model} {engine.precision} {engine.backend} | {report.origin.device}, "
            f"{report.origin.threads} threads | [{latency.p50:.3g}]({_link(path, home)}) | {latency.p99:.3g} | "
            f"{report.best.images_per_second:.1f} (batch {report.best.batch}) | {starts[0]} | {starts[1]} | "
            f"{size(peak) if peak else _NOT_YET} |"
        )
    yield ""


def _profiles(reports: Sequence[tuple[Path, ProfileReport]], home: Path) -> Iterator[str]:
    yield _command("profile")
    yield (
        "A [floor](glossary.md#floor) is the time that a block's operations or bytes need at the rates "
        "measured in the same run.\n"
    )
    if not reports:
        yield from missing_lines(_NOT_YET)
    for path, report in reports:
        yield from profile_lines(report, _link(path, home))


def _kernels(runs: Sequence[tuple[Path, dict[str, Any]]], home: Path) -> Iterator[str]:
    yield "| case | ours ms | x floor | to each peer |\n|---|---|---|---|"
    if not runs:
        cases = ("training step", "fp16 inference", "int8 inference", "every operation of ResNet-50")
        yield from (f"| {case} | {_NOT_YET} | {_NOT_YET} | {_NOT_YET} |" for case in cases)
    for path, run in runs:
        device = run["environment"].get("device_name", path.parent.name)
        for case in run.get("cases", []):
            ours = case.get("ours_ms")
            floor = f"{case['ratio_to_floor']:.2f}" if "ratio_to_floor" in case else ""
            ratios = ", ".join(f"{peer} {ratio:.2f}x" for peer, ratio in case.get("ratio", {}).items())
            time = f"[{ours['median']:.4f}]({_link(path, home)})" if ours else "wrong, so it has no time"
            yield f"| {device}: {case['name']} | {time} | {floor} | {ratios} |"
    yield ""


def _link(path: Path, home: Path) -> str:
    return Path(os.path.relpath(path, home)).as_posix()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or with ``--check`` say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where the page is not up to date"
    )
    asked = parser.parse_args(arguments)
    try:
        text = page(asked.results, asked.output.parent.resolve())
    except ValueError as error:
        sys.exit(f"error: {error}")
    if asked.check:
        same = asked.output.is_file() and asked.output.read_text("utf-8") == text
        sys.exit(
            0 if same else f"error: {asked.output} is not what the results give; run this without --check"
        )
    atomic_write(asked.output, text.encode())
    print(asked.output)
    if plot := picture(asked.results):
        drawn = asked.output.parent / PICTURE
        drawn.parent.mkdir(exist_ok=True)
        plot.write(drawn)
        print(drawn)


if __name__ == "__main__":
    main()

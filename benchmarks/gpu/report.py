"""The report of a run: one JSON document, and the same as a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.phase_blocks import COMPILED
from benchmarks.gpu.phase_network import FP16

SCHEMA = 1
SECTIONS = ("residency", "correctness", "flattened_loop", "tuning", "cases")
INFORMATION = {"residency", "flattened_loop", "tuning"}
"""Sections whose results judge Triton or a candidate, not what is shipped."""


@dataclass(frozen=True)
class Bar:
    """A ratio that the project aims at."""

    name: str
    case: str
    peer: str
    asked: float


@dataclass
class Report:
    """Everything, as it comes in."""

    arguments: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    sections: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in SECTIONS})
    phases: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    """Cases that raised an error or ended the process."""
    compile_failures: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """Names of results that are not right, and of cases that did not end well."""
        found = [
            f"{section}: {result['name']}"
            for section, results in self.sections.items()
            for result in results
            if section not in INFORMATION and not result.get("correct", True)
        ]
        return found + [entry["name"] for entry in self.failed]

    def measured(self) -> bool:
        """Whether there is any result."""
        return any(self.sections.values())

    def judged_bars(self) -> list[dict[str, Any]]:
        """Each bar with what was measured; ``passed`` is None where nothing was."""
        cases = {case["name"]: case for case in self.sections["cases"]}
        judged = []
        for bar in self.bars:
            ratio = cases.get(bar.case, {}).get("ratio", {}).get(bar.peer)
            if self.environment.get("device") != "cuda":
                ratio = None
            passed = None if ratio is None else ratio >= bar.asked
            judged.append({"name": bar.name, "asked": bar.asked, "measured": ratio, "passed": passed})
        return judged

    def to_json(self) -> dict[str, Any]:
        """The document."""
        return {
            "schema": SCHEMA,
            "arguments": self.arguments,
            "environment": self.environment,
            "ceilings": None if self.ceilings is None else self.ceilings.to_json(),
            "bars": self.judged_bars(),
            "wrong": self.wrong(),
            "failed": self.failed,
            "phases": self.phases,
            **self.sections,
            "skipped": self.skipped,
            "compile_failures": self.compile_failures,
        }

    def write(self, path: Path) -> None:
        """Write under a temporary name, then rename: a killed run leaves the last whole document."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")
        partial.replace(path)


def bars_for(largest: int, inference: int) -> list[Bar]:
    """The bars of the kernels, at the batches that this run measures."""
    return [
        Bar(f"training step, batch {largest}, over torch.compile", f"train-b{largest}", COMPILED, 1.15),
        Bar(f"fp16 inference, batch {inference}, over torch.compile", f"infer-b{inference}", COMPILED, 1.3),
        Bar(f"int8 inference, batch {inference}, over our fp16", f"int8-b{inference}", FP16, 1.5),
    ]


def as_text(report: Report) -> str:
    """The table, the bars and what went wrong; the last lines are the most important ones."""
    return "\n".join(
        [*_cases(report), *_residency(report), *_checks(report), *_skips(report), *_bars(report)]
    )


def _cases(report: Report) -> Iterator[str]:
    cases = report.sections["cases"]
    if not cases:
        return
    if report.environment.get("device") != "cuda":
        yield "On a CPU these times show that the code runs, and nothing else."
    yield f"{'case':58}{'ours ms':>10}{'x floor':>9}  ratio to each peer (its time / ours)"
    for case in cases:
        ours = case.get("ours_ms")
        if ours is None:
            yield f"{case['name']:58}{'WRONG':>10}{'':9}  {case.get('worst', '')}"
            continue
        floor = f"{case['ratio_to_floor']:.2f}" if "ratio_to_floor" in case else ""
        ratios = ", ".join(f"{peer} {ratio:.2f}" for peer, ratio in case["ratio"].items())
        unstable = "  (unstable)" if any("unstable" in note for note in case["notes"]) else ""
        yield f"{case['name']:58}{ours['median']:10.4f}{floor:>9}  {ratios}{unstable}"


def _residency(report: Report) -> Iterator[str]:
    found = [
        (result["count"], result["ms"]["alone"], result["ms"]["several"])
        for result in report.sections["residency"]
        if None not in result["ms"].values()
    ]
    if found:
        alone, several = (sum(one[0] * one[index] for one in found) for index in (1, 2))
        yield (
            f"\nlong reductions, {len(found)} problems, ms a step: {alone:.3f} with a processor for one program, "
            f"{several:.3f} with several on it"
        )


def _checks(report: Report) -> Iterator[str]:
    results = report.sections["correctness"]
    if results:
        right = sum(result["correct"] for result in results)
        yield f"\ncorrectness: {right} of {len(results)} right"
    flat = report.sections["flattened_loop"]
    if flat:
        right = sum(result["correct"] for result in flat)
        yield f"flattened loop: {right} of {len(flat)} right"
        yield from (
            f"  wrong: {result['name']}: {result['worst']}" for result in flat if not result["correct"]
        )
    for result in results:
        if not result["correct"]:
            yield f"  WRONG {result['name']}: {result['worst']}"
    for entry in report.failed:
        yield f"  FAILED {entry['name']}: {entry['reason']}"


def _skips(report: Report) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for entry in report.skipped:
        reasons.setdefault(entry["reason"], []).append(entry["name"])
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"skipped {names[0]}{more}: {reason}"


def _bars(report: Report) -> Iterator[str]:
    environment = report.environment
    yield ""
    yield (
        f"{environment.get('device_name')}, torch {environment.get('torch')}, Triton {environment.get('triton')},"
        f" commit {environment.get('commit')}, {environment.get('date')}"
    )
    if report.ceilings is not None:
        ceilings = report.ceilings.to_json()
        yield ", ".join(f"{name} {value:.3g}" for name, value in ceilings.items() if isinstance(value, float))
    for bar in report.judged_bars():
        measured = "not measured" if bar["measured"] is None else f"{bar['measured']:.2f}x"
        verdict = {None: "", True: "passed", False: "MISSED"}[bar["passed"]]
        yield f"{bar['name']:56} asked {bar['asked']:.2f}x   {measured:>13}  {verdict}".rstrip()


__all__ = ["Bar", "Report", "as_text", "bars_for"]

"""``report.html``: the report as one page that needs no network, light or dark, wide or narrow.

Every text of the report passes through ``_text``: names of models, files and blocks come from outside.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from string import Template

from rescompile.presenting import report_lines
from rescompile.presenting.plots import build_report, damage
from rescompile.presenting.report_lines import Line
from rescompile.report import BuildReport, Check, StageRecord
from rescompile.wording import duration, plain, size

_TONES = {"verified": "good", "failed": "bad"}
_HASHES = {"checkpoint sha256", "calibration table sha256", "image set fingerprint"}


def render(report: BuildReport) -> str:
    """The page as text, to be written as UTF-8; the same report gives the same page."""
    sections = (
        _checks(report),
        _notes(report.notes),
        _section("Measured", _facts(report_lines.measurements(report))),
        _plots(report),
        _section("Blocks in FP16", _mixture(report)),
        _section("Graph", _graph(report)),
        _section("Stages", _stages(report.stages)),
        _section(
            "Built", _facts((*report_lines.identity(report), ("engine directory", report.engine_directory)))
        ),
        _section("Provenance", _facts(report_lines.provenance(report))),
        _section("Environment", _facts(report.environment.items())),
    )
    return _template().substitute(
        title=_text(f"{report.model} {report.precision} {report.backend}"),
        tone=_TONES.get(report.verdict, "open"),
        verdict=_text(report.verdict[:1].upper() + report.verdict[1:]),
        explanation=_text(report_lines.explanation(report)),
        body="\n".join(section for section in sections if section),
    )


@cache
def _template() -> Template:
    return Template((files("rescompile") / "data" / "report.html").read_text(encoding="utf-8"))


def _text(text: str) -> str:
    return html.escape(plain(text))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _facts(lines: Iterable[Line]) -> str:
    rows = [
        f'<tr><th scope="row">{_text(label)}</th><td>{_value(label, value)}</td></tr>'
        for label, value in lines
    ]
    return '<table class="facts"><tbody>\n' + "\n".join(rows) + "\n</tbody></table>" if rows else ""


def _value(label: str, value: str) -> str:
    return f"<code>{_text(value)}</code>" if label in _HASHES else _text(value)


def _checks(report: BuildReport) -> str:
    if not report.checks:
        return ""
    rows = "\n".join(_check(check) for check in report.checks)
    return _section(
        "Asked and measured",
        '<table><thead><tr><th scope="col">check</th><th scope="col">asked</th><th scope="col">measured</th>'
        f'<th scope="col"></th></tr></thead><tbody>\n{rows}\n</tbody></table>',
    )


def _check(check: Check) -> str:
    tone, word = ("good", "✓ passed") if check.passed else ("bad", "✗ failed")
    cells = f"<td>{_text(check.asked)}</td><td>{_text(check.measured)}</td>"
    return f'<tr><th scope="row">{_text(check.name)}</th>{cells}<td class="state {tone}">{word}</td></tr>'


def _notes(notes: tuple[str, ...]) -> str:
    items = "\n".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<ul class="notes">\n{items}\n</ul>' if notes else ""


def _plots(report: BuildReport) -> str:
    figures = []
    if report.blocks:
        caption = (
            "Signal over error at the end of each block, in the order of execution, deployable graph against fp32: "
            "higher is better, and the marked block is the worst."
        )
        figures.append(_figure(build_report.error_by_block(report.blocks), caption))
    if report.ranges:
        caption = (
            "The largest magnitude that calibration saw at each quantized tensor, and the threshold beyond which "
            "INT8 saturates."
        )
        figures.append(_figure(build_report.activation_ranges(report.ranges), caption))
    if report.logits:
        figures.append(_logits(report))
    return _section("Where the error is", "\n".join(figures))


def _mixture(report: BuildReport) -> str:
    """The blocks that are not quantized, and the search that chose them."""
    parts = [_facts(report_lines.fp16_blocks(report))]
    if report.damages:
        caption = (
            "What each block alone in INT8 does to the logits of calibration images: the order of the search."
        )
        parts.append(_figure(damage.damage_by_block(report.damages), caption))
    if report.frontier:
        caption = (
            "Every choice of blocks that was measured on the images that judge the engine; reformats are kernels that "
            "change an activation between int8 and floating point."
        )
        parts.append(_figure(damage.frontier(report.frontier), caption))
        header = "".join(f'<th scope="col">{_text(name)}</th>' for name in report_lines.FRONTIER_HEADER)
        rows = "\n".join(
            f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
            for row in report_lines.frontier(report)
        )
        parts.append(f"<table><thead><tr>{header}</tr></thead><tbody>\n{rows}\n</tbody></table>")
    return "\n".join(part for part in parts if part)


def _logits(report: BuildReport) -> str:
    count, subject = len(report.logits), report_lines.subject(report)
    values = f"{count} logits of the {subject}, drawn evenly from all images: on the line, it equals fp32."
    errors = "The error of the same logits: a cloud that leans or bends is more than rounding."
    left = _figure(build_report.logits(report.logits, precision=report.precision), values)
    right = _figure(build_report.logit_errors(report.logits, precision=report.precision), errors)
    return f'<div class="pair">\n{left}\n{right}\n</div>'


def _figure(svg: str, caption: str) -> str:
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{_text(caption)}"', 1)
    return (
        f'<figure>\n<div class="plot">{labelled}</div>\n<figcaption>{_text(caption)}</figcaption>\n</figure>'
    )


def _graph(report: BuildReport) -> str:
    table = _facts(
        (("fusion contract", report_lines.lint(report)), ("residual adds fused", report_lines.fused(report)))
    )
    broken = "".join(f"<li>{_text(sentence)}</li>" for sentence in report.lint.violations)
    rules = "".join(f"<li>{_text(rule)}</li>" for rule in report.lint.rules)
    return (
        table
        + (f'\n<ul class="broken">{broken}</ul>' if broken else "")
        + (
            f"\n<details><summary>The rules that were checked</summary><ul>{rules}</ul></details>"
            if rules
            else ""
        )
    )


def _stages(stages: tuple[StageRecord, ...]) -> str:
    if not stages:
        return ""
    longest = max(stage.seconds for stage in stages) or 1.0
    rows = "\n".join(_stage(stage, 100 * stage.seconds / longest) for stage in stages)
    total = duration(sum(stage.seconds for stage in stages))
    peak = size(max(stage.peak_rss_bytes for stage in stages))
    return (
        '<table><thead><tr><th scope="col">stage</th><th class="bar"></th><th scope="col" class="number">time</th>'
        f'<th scope="col" class="number">peak memory</th></tr></thead><tbody>\n{rows}\n</tbody>'
        f'<tfoot><tr><th scope="row">all</th><td></td><td class="number">{total}</td>'
        f'<td class="number">{peak}</td></tr></tfoot></table>'
    )


def _stage(stage: StageRecord, share: float) -> str:
    return (
        f'<tr><th scope="row">{_text(stage.name)}</th><td class="bar"><div style="width:{share:.1f}%"></div></td>'
        f'<td class="number">{duration(stage.seconds)}</td>'
        f'<td class="number">{size(stage.peak_rss_bytes)}</td></tr>'
    )

"""``report.html``: a build's report as one page."""

from __future__ import annotations

from rescompile.presenting import report_lines
from rescompile.presenting.html import page
from rescompile.presenting.plots import build_report
from rescompile.presenting.plots.precision_search import precision_search
from rescompile.presenting.plots.sensitivity import sensitivity_by_block
from rescompile.report import NOT_JUDGED, BuildReport

MOST_SHOWN = 24
"""Images whose class changed that the page shows; report.json has more."""
_TONES = {"verified": "good", "failed": "bad", NOT_JUDGED: "bad"}


def render(report: BuildReport) -> str:
    """The page as text, to be written as UTF-8; the same report gives the same page."""
    return page.render(
        "report.html",
        title=f"{report.model} {report_lines.precision(report)} {report.backend}",
        tone=_TONES.get(report.verdict, "open"),
        headline=report.verdict[:1].upper() + report.verdict[1:],
        explanation=report_lines.explanation(report),
        report=report,
        lines=report_lines,
        plots=build_report,
        shown=MOST_SHOWN,
        sensitivity_by_block=sensitivity_by_block,
        precision_search=precision_search,
    )

"""The page of one training."""

from __future__ import annotations

from rescompile.presenting.html import page
from rescompile.presenting.plots.training import curves
from rescompile.training_report import TrainingReport
from rescompile.wording import duration

_MOST_ROWS = 12


def render_training(report: TrainingReport) -> str:
    """The page as text, to be written as UTF-8; the same report gives the same page."""
    best, last = report.best, report.last
    rows = (
        report.history
        if len(report.history) <= _MOST_ROWS
        else report.history[:: len(report.history) // _MOST_ROWS]
    )
    return page.render(
        "training.html",
        title=f"{report.model} trained on {report.data}",
        tone="",
        headline=f"{best.test_error:.2f} % error",
        explanation=(
            f"Test error of {report.model} after {best.step} of {last.step} steps, on {report.test_images:,} images "
            "that it was not trained on."
        ),
        notes=report.notes,
        plot=curves(report.history),
        rows=rows if rows[-1] is last else [*rows, last],
        facts=[
            ("network", f"{report.model}, {report.parameters:,} parameters"),
            ("training images", f"{report.train_images:,}"),
            ("recipe", report.recipe or "the user's own"),
            ("time", duration(sum(record.seconds for record in report.history))),
            ("speed at the end", f"{last.images_per_second:,.0f} images/s"),
            ("weights", f"{report.directory}/best.safetensors"),
        ],
    )

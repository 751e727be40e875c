"""The plot of ``rescompile calibrate --compare``: one line a method over the tensors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.methods.comparison import Comparison
from rescompile.files import atomic_write
from rescompile.plots import _INK, _ascii, _axes, _figure, _finish, _logarithmic, _name_positions, _style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#3b82c4", "#d9663f", "#3a9d6a", "#a06cc9", "#b8912f", "#c75a86", "#5b9aa8")
"""Mid-tones that are legible on white and on black."""


def write_plot(comparison: Comparison, path: Path) -> None:
    """Write the plot to ``path``, as SVG or PNG by its suffix.

    Raises:
        OutputError: the disk is full, or ``path`` may not be written.
    """
    atomic_write(path, png(comparison) if path.suffix.lower() == ".png" else svg(comparison).encode())


@_style("methods by tensor")
def svg(comparison: Comparison) -> str:
    """The plot as an ``<svg>`` element on a transparent ground; the same comparison gives the same text."""
    return _finish(_draw(comparison))


@_style("methods by tensor")
def png(comparison: Comparison) -> bytes:
    """The plot as a PNG on white."""
    buffer = io.BytesIO()
    _draw(comparison).savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _draw(comparison: Comparison) -> Figure:
    figure = _figure(380)
    axes = _axes(figure)
    names = list(comparison.tensors)
    by_logits = bool(comparison.together)
    lines = {method: _line(comparison, method, by_logits) for method in comparison.tensors[names[0]]}
    if by_logits:
        known = np.concatenate([values[np.isfinite(values)] for values in lines.values()])
        _logarithmic(axes, known)
    for (method, values), colour in zip(lines.items(), _COLOURS, strict=False):
        label = f"{method}: {comparison.together[method]:.4f}" if by_logits else method
        axes.plot(values, "o-", ms=3, linewidth=1.2, color=colour, label=_ascii(label))
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel("relative RMS of the logits" if by_logits else "SQNR in dB")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0.2)
    for text in legend.get_texts():
        text.set_color(_INK)
        text.set_parse_math(False)
    _name_positions(axes, names)
    return figure


def _line(
    comparison: Comparison, method: str, by_logits: bool
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    results = [entry[method] for entry in comparison.tensors.values()]
    values = [entry.logits_rms if by_logits else entry.sqnr_db for entry in results]
    return np.array([np.nan if value is None or value == 0 else value for value in values])

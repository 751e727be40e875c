"""The plot of ``rescompile calibrate --compare``: one line a method over the tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from calibration.methods.comparison import Comparison
from rescompile.presenting.plots.figure import (
    ascii_only,
    colour,
    label_positions,
    legend,
    log_axis,
)
from rescompile.presenting.plots.plot import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def methods_by_tensor(comparison: Comparison) -> Plot:
    """Expected error of the logits for each method and tensor; SQNR of the tensor where no gradients are known."""
    return Plot("methods-by-tensor", "Every calibration method by tensor.", partial(_draw, comparison), 380)


def _draw(comparison: Comparison, axes: Axes) -> None:
    by_logits = bool(comparison.together)
    names = list(comparison.tensors)
    for index, method in enumerate(comparison.tensors[names[0]]):
        results = [entry[method] for entry in comparison.tensors.values()]
        values = [entry.logits_rms if by_logits else entry.sqnr_db for entry in results]
        known = [value or np.nan for value in values]  # neither None nor 0 has a place on the axis
        label = f"{method}: {comparison.together[method]:.4f}" if by_logits else method
        axes.plot(known, "o-", ms=3, linewidth=1.2, color=colour(index), label=ascii_only(label))
    if by_logits:
        log_axis(axes, "y")
    axes.set_ylabel("relative RMS of the logits" if by_logits else "SQNR in dB")
    legend(axes, columns=4)
    label_positions(axes, names)

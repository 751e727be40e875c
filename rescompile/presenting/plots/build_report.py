"""The plots of a build's report: error by block, activation ranges, logits and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescompile.presenting.plots.figure import (
    ALERT,
    INK,
    MAIN,
    MOST_NAMES,
    PAGE_WIDTH,
    label_positions,
    legend,
    log_axis,
    named_bars,
)
from rescompile.presenting.plots.plot import Plot
from rescompile.report import ActivationRange, BlockError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BITMAP_MAIN, _BITMAP_ALERT = "#4c8fd0", "#e0703f"
"""Clouds of points are bitmaps, so that thousands stay small; CSS does not reach them, so these are mid-tones."""

GOOD_DB = 20
"""SQNR below which a block deserves a look: the error exceeds a tenth of the tensor's RMS."""

Pairs = Sequence[tuple[float, float]]


def error_by_block(blocks: Sequence[BlockError]) -> Plot:
    """Bars of SQNR, one a block in the order of execution, the worst one marked; for 1 block or more."""
    return Plot(
        "error-by-block",
        "Signal-to-noise ratio (SQNR) at the end of each block, in the order of execution: the deployable graph "
        "against fp32. Higher is better; the worst block is marked. The dashed line is 20 dB, where the error is a "
        "tenth of the signal.",
        partial(_draw_errors, blocks),
    )


def activation_ranges(ranges: Sequence[ActivationRange]) -> Plot:
    """amax and chosen threshold of each quantized tensor in the order of execution; a dead tensor is at the foot."""
    return Plot(
        "activation-ranges",
        "The largest magnitude (amax) that calibration saw in each quantized tensor, and the threshold beyond which "
        "INT8 saturates.",
        partial(_draw_ranges, ranges),
    )


def logits(pairs: Pairs, *, precision: str, subject: str, word: str = "logit") -> Plot:
    """Outputs of ``subject`` in ``precision`` against the fp32 ones; ``word`` is the name of one."""
    return Plot(
        "logits",
        f"{len(pairs)} {word}s of the {subject}, drawn evenly from all images. Points on the line equal fp32.",
        partial(_draw_logits, pairs, precision, word),
        width=PAGE_WIDTH / 2,
    )


def logit_errors(pairs: Pairs, *, precision: str, word: str = "logit") -> Plot:
    """Error of each logit against its fp32 value: what is too small to be seen beside the diagonal."""
    return Plot(
        "logit-errors",
        f"The error of the same {word}s. A cloud that leans or bends shows more than rounding errors.",
        partial(_draw_logit_errors, pairs, precision, word),
        width=PAGE_WIDTH / 2,
    )


def _draw_errors(blocks: Sequence[BlockError], axes: Axes) -> None:
    values = np.array([block.sqnr_db for block in blocks])
    worst = int(values.argmin())
    label = f"worst: {blocks[worst].block}, {values[worst]:.1f} dB"
    named_bars(axes, values, [block.block for block in blocks], worst, label)
    axes.set_ylim(min(0.0, float(values.min())) * 1.08, max(GOOD_DB + 2, float(values.max())) * 1.08)
    axes.axhline(GOOD_DB, color=INK, alpha=0.7, linewidth=1.2, linestyle="--")
    axes.set_ylabel("SQNR in dB")


def _draw_ranges(ranges: Sequence[ActivationRange], axes: Axes) -> None:
    amax, threshold = _positive([r.amax for r in ranges]), _positive([r.threshold for r in ranges])
    x = np.arange(len(ranges))
    labels = ("largest magnitude seen (amax)", "chosen threshold")
    if len(ranges) <= MOST_NAMES:
        axes.vlines(x, threshold, amax, colors=INK, alpha=0.35, linewidth=1)
        # a ring around a dot: both are seen where they coincide
        axes.plot(x, amax, "o", ms=7, mfc="none", mec=MAIN, mew=1.6, label=labels[0])
        axes.plot(x, threshold, "o", ms=4, color=ALERT, mew=0, label=labels[1])
    else:
        dots: dict[str, Any] = {"mew": 0, "rasterized": True}
        axes.plot(x, amax, "o", ms=5, color=_BITMAP_MAIN, label=labels[0], **dots)
        axes.plot(x, threshold, "o", ms=2.8, color=_BITMAP_ALERT, label=labels[1], **dots)
    log_axis(axes, "y")
    axes.set_ylabel("magnitude")
    legend(axes)
    label_positions(axes, [r.tensor for r in ranges])


def _draw_logits(pairs: Pairs, precision: str, word: str, axes: Axes) -> None:
    values = _array(pairs)
    bounds = _span(values)
    axes.plot(bounds, bounds, color=INK, alpha=0.5, linewidth=1)
    _cloud(axes, values[:, 0], values[:, 1])
    axes.set(xlim=bounds, ylim=bounds, xlabel=f"fp32 {word}", ylabel=f"{precision} {word}")


def _draw_logit_errors(pairs: Pairs, precision: str, word: str, axes: Axes) -> None:
    values = _array(pairs)
    error = values[:, 1] - values[:, 0]
    axes.axhline(0, color=INK, alpha=0.5, linewidth=1)
    _cloud(axes, values[:, 0], error)
    axes.set(xlim=_span(values), ylim=_span(np.stack([error, -error])))
    axes.set(xlabel=f"fp32 {word}", ylabel=f"error ({precision} - fp32)")


def _array(pairs: Pairs) -> NDArray[np.float64]:
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 2)


def _cloud(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    axes.scatter(x, y, s=9, color=_BITMAP_MAIN, alpha=0.55, linewidths=0, rasterized=True)


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    """Limits of an axis that shows all ``values`` and zero, with a margin."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _positive(values: Sequence[float]) -> NDArray[np.float64]:
    """``values`` for a logarithmic axis: what is not above 0 becomes half of the smallest that is."""
    array = np.array(values, dtype=np.float64)
    positive = array[array > 0]
    return np.maximum(array, positive.min() / 2 if positive.size else 1.0)

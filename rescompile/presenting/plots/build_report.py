"""The plots of a report, as SVG text that follows the page's colours.

Ink and accents are written as CSS: ``currentColor``, ``--plot-main`` and ``--plot-alert``, each with a mid-tone that
is legible on white and on black where no page defines it. The same input gives the same text.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rescompile.report import ActivationRange, BlockError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# stand-ins that matplotlib draws with; _finish replaces them by CSS
_INK, _MAIN, _ALERT = "#010203", "#040506", "#070809"
_CSS = {
    _INK: "currentColor",
    _MAIN: "var(--plot-main, #3b82c4)",
    _ALERT: "var(--plot-alert, #d9663f)",
}
_BITMAP_MAIN, _BITMAP_ALERT = "#4c8fd0", "#e0703f"
"""Clouds of points are bitmaps, so that thousands stay small; CSS does not reach them, so these are mid-tones."""
_AMAX_LABEL, _THRESHOLD_LABEL = "largest magnitude seen (amax)", "chosen threshold"

_MOST_NAMES = 60
"""Above this many blocks or tensors, single names would overlap; stage names stand instead."""
_INCH = 1 / 72
_WIDTH = 720 * _INCH


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """matplotlib's defaults whatever the user's settings say; ``salt`` keeps the ids of one page's plots apart."""
    from matplotlib import style

    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": salt}]):
        yield


@_style("error by block")
def error_by_block(blocks: Sequence[BlockError]) -> str:
    """Bars of SQNR in dB, one a block in the order of execution, the worst one marked; for 1 block or more."""
    values = np.array([block.sqnr_db for block in blocks])
    figure = _figure(300)
    axes = _axes(figure)
    edges = np.arange(len(values) + 1) - 0.5
    width = 0.8 if len(values) <= _MOST_NAMES else 1.0
    _bars(axes, values, width, _MAIN)
    worst = int(values.argmin())
    _bars(axes, values[worst : worst + 1], max(width, len(values) / 250), _ALERT, start=worst)
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(low * 1.08, high * 1.08)
    label = f"worst: {_ascii(blocks[worst].block)}, {values[worst]:.1f} dB"
    axes.text(0, 1.02, label, transform=axes.transAxes, va="bottom", color=_ALERT, parse_math=False)
    axes.set_ylabel("SQNR in dB")
    _name_positions(axes, [block.block for block in blocks])
    return _finish(figure)


@_style("activation ranges")
def activation_ranges(ranges: Sequence[ActivationRange]) -> str:
    """amax and chosen threshold of each quantized tensor in the order of execution, on a logarithmic scale.

    A dead tensor (amax 0) stands at the foot of the plot.
    """
    amax, threshold = _positive([r.amax for r in ranges]), _positive([r.threshold for r in ranges])
    figure = _figure(320)
    axes = _axes(figure)
    _logarithmic(axes, np.concatenate([amax, threshold]))
    x = np.arange(len(ranges))
    if len(ranges) <= _MOST_NAMES:
        axes.vlines(x, threshold, amax, colors=_INK, alpha=0.35, linewidth=1)
        # a ring around a dot: both are seen where they coincide
        axes.plot(x, amax, "o", ms=7, mfc="none", mec=_MAIN, mew=1.6, label=_AMAX_LABEL)
        axes.plot(x, threshold, "o", ms=4, color=_ALERT, mew=0, label=_THRESHOLD_LABEL)
    else:
        axes.plot(x, amax, "o", ms=5, color=_BITMAP_MAIN, mew=0, rasterized=True, label=_AMAX_LABEL)
        axes.plot(
            x, threshold, "o", ms=2.8, color=_BITMAP_ALERT, mew=0, rasterized=True, label=_THRESHOLD_LABEL
        )
    axes.set_xlim(-0.5, len(ranges) - 0.5)
    axes.set_ylabel("magnitude")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    for text in legend.get_texts():
        text.set_color(_INK)
    _name_positions(axes, [r.tensor for r in ranges])
    return _finish(figure)


@_style("logits")
def logits(pairs: Sequence[tuple[float, float]], *, precision: str) -> str:
    """Logits in ``precision`` against the fp32 ones, around the diagonal; half as wide as the other plots."""
    values = _pairs(pairs)
    figure = _figure(320, width=_WIDTH / 2)
    axes = _axes(figure)
    bounds = _span(values)
    axes.plot(bounds, bounds, color=_INK, alpha=0.5, linewidth=1)
    _cloud(axes, values[:, 0], values[:, 1])
    axes.set(xlim=bounds, ylim=bounds, xlabel="fp32 logit", ylabel=f"{precision} logit")
    return _finish(figure)


@_style("logit errors")
def logit_errors(pairs: Sequence[tuple[float, float]], *, precision: str) -> str:
    """Error of each logit against its fp32 value: what is too small to be seen beside the diagonal."""
    values = _pairs(pairs)
    error = values[:, 1] - values[:, 0]
    figure = _figure(320, width=_WIDTH / 2)
    axes = _axes(figure)
    axes.axhline(0, color=_INK, alpha=0.5, linewidth=1)
    _cloud(axes, values[:, 0], error)
    axes.set(xlim=_span(values), ylim=_span(np.stack([error, -error])))
    axes.set(xlabel="fp32 logit", ylabel=f"error ({precision} - fp32)")
    return _finish(figure)


def _pairs(pairs: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    return np.asarray(pairs, dtype=np.float64).reshape(-1, 2)


def _cloud(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    axes.scatter(x, y, s=9, color=_BITMAP_MAIN, alpha=0.55, linewidths=0, rasterized=True)


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    """Limits of an axis that shows all ``values`` and zero, with a margin."""
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _figure(height: int, *, width: float = _WIDTH) -> Figure:
    """A transparent figure, as wide as the page unless told, ``height`` points high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * _INCH), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _axes(figure: Figure) -> Axes:
    """Open transparent axes in the page's ink."""
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_INK, alpha=0.15, linewidth=0.8)
    axes.tick_params(colors=_INK, length=3)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(_INK)
        spine.set_alpha(0.5)
    return axes


def _bars(axes: Axes, values: NDArray[np.float64], width: float, color: str, *, start: int = 0) -> None:
    """Bars as one path: 600 rectangles of their own would be most of the file."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    left = np.arange(start, start + len(values)) - width / 2
    right, zero = left + width, np.zeros_like(values)
    corners = np.stack(
        [
            np.stack([left, left, right, right, left], axis=1),
            np.stack([zero, values, values, zero, zero], axis=1),
        ],
        axis=2,
    )
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(values)
    axes.add_patch(PathPatch(Path(corners.reshape(-1, 2), codes), facecolor=color, linewidth=0))


def _name_positions(axes: Axes, names: Sequence[str]) -> None:
    """Names below the x axis: each one where there is room, else the stage over its part of the axis."""
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)))
        labels = axes.set_xticklabels([_ascii(name) for name in names], rotation=90, fontsize=9)
        for label in labels:
            label.set_parse_math(False)
        return
    middles, texts, start = [], [], 0
    for stage, members in itertools.groupby(names, key=lambda name: name.split(".")[0]):
        end = start + sum(1 for _ in members)
        if end - start > len(names) / 40:
            middles.append((start + end - 1) / 2)
            texts.append(_ascii(stage))
            for edge in (start - 0.5, end - 0.5):
                axes.axvline(edge, color=_INK, alpha=0.2, linewidth=0.8)
        start = end
    axes.set_xticks(middles)
    for label in axes.set_xticklabels(texts):
        label.set_parse_math(False)
    axes.tick_params(axis="x", length=0)


def _logarithmic(axes: Axes, values: NDArray[np.float64]) -> None:
    """A logarithmic y axis for ``values`` > 0, with plain numbers at 1, 2, 5 or, over many decades, at 1 only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    subdivisions = (1.0, 2.0, 5.0) if values.max() < 300 * values.min() else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subdivisions))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _positive(values: Sequence[float]) -> NDArray[np.float64]:
    """``values`` with what a logarithm does not take raised to half of the smallest that it takes."""
    array = np.array(values, dtype=np.float64)
    positive = array[array > 0]
    return np.maximum(array, positive.min() / 2 if positive.size else 1.0)


def _ascii(name: str) -> str:
    """``name`` in characters that every font has; matplotlib warns about others."""
    return "".join(char if " " <= char <= "~" else "?" for char in name)


def _finish(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without prolog, date, ids of groups, fixed size or font of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for stand_in, css in _CSS.items():
        text = text.replace(stand_in, css)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r' height="[^"]*pt"', "", text, count=1))

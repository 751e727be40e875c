"""The plots about blocks in FP16: what each block's quantization costs, and accuracy against blocks in INT8."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rescompile.files import atomic_write
from rescompile.presenting.plots.build_report import (
    _ALERT,
    _INK,
    _MAIN,
    _ascii,
    _axes,
    _bars,
    _figure,
    _finish,
    _name_positions,
    _style,
)
from rescompile.report import BlockDamage, FrontierPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR, _MARK = "#3b82c4", "#d9663f"
"""Mid-tones that are legible on white and on black, in a PNG too."""
_MOST_LABELS = 12
"""Points of a frontier that are labelled with their reformats; the labels of more would overlap."""


def write_plot(damages: Sequence[BlockDamage], path: Path) -> None:
    """Write the plot of ``damages`` to ``path``, as SVG or PNG by its suffix.

    Raises:
        OutputError: the disk is full, or ``path`` may not be written.
    """
    atomic_write(path, png(damages) if path.suffix.lower() == ".png" else damage_by_block(damages).encode())


@_style("damage by block")
def damage_by_block(damages: Sequence[BlockDamage]) -> str:
    """Bars of relative RMS, one a block in the order of execution, the worst one marked; for 1 block or more."""
    return _finish(_draw_damage(damages))


@_style("damage by block")
def png(damages: Sequence[BlockDamage]) -> bytes:
    """The same as a PNG on white."""
    buffer = io.BytesIO()
    _draw_damage(damages).savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _draw_damage(damages: Sequence[BlockDamage]) -> Figure:
    values = np.array([entry.relative_rms for entry in damages])
    figure = _figure(300)
    axes = _axes(figure)
    _bars(axes, values, 0.8, _BAR)
    worst = int(values.argmax())
    _bars(axes, values[worst : worst + 1], 0.8, _MARK, start=worst)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(0, float(values.max()) * 1.08 or 1.0)
    label = f"most damage: {_ascii(damages[worst].block)}, {values[worst]:.4f}"
    axes.text(0, 1.02, label, transform=axes.transAxes, va="bottom", color=_MARK, parse_math=False)
    axes.set_ylabel("relative RMS of the logits")
    _name_positions(axes, [entry.block for entry in damages])
    return figure


@_style("frontier")
def frontier(points: Sequence[FrontierPoint]) -> str:
    """Agreement against blocks in INT8, with the reformats of each choice; hollow where a limit is missed."""
    figure = _figure(300)
    axes = _axes(figure)
    for passed in (True, False):
        chosen = [point for point in points if point.passed == passed]
        colour = _MAIN if passed else _ALERT
        axes.plot(
            [point.int8_blocks for point in chosen],
            [100 * point.top1_agreement for point in chosen],
            "o",
            ms=7,
            mfc=colour if passed else "none",
            mec=colour,
            mew=1.6,
            label="keeps the limits" if passed else "misses a limit",
        )
    for point in points if len(points) <= _MOST_LABELS else ():
        text = f"{point.reformats} reformat{'s' * (point.reformats != 1)}"
        place = (point.int8_blocks, 100 * point.top1_agreement)
        axes.annotate(
            text, place, xytext=(0, 8), textcoords="offset points", ha="center", color=_INK, fontsize=8
        )
    axes.margins(0.08, 0.15)
    axes.set_xlabel("blocks in INT8")
    axes.set_ylabel("agreement with fp32 in %")
    axes.locator_params(axis="x", integer=True)
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    for entry in legend.get_texts():
        entry.set_color(_INK)
    return _finish(figure)

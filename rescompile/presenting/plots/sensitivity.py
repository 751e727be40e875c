"""Sensitivity of each block: how much its quantization alone changes the logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rescompile.presenting.plots.figure import named_bars
from rescompile.presenting.plots.plot import Plot
from rescompile.report import BlockDamage

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sensitivity_by_block(blocks: Sequence[BlockDamage]) -> Plot:
    """Bars of relative RMS, one a block in the order of execution, the largest one marked; for 1 block or more."""
    return Plot(
        "sensitivity-by-block",
        "How much each block, alone in INT8, changes the logits of calibration images. The search moves the most "
        "sensitive blocks to FP16 first.",
        partial(_draw, blocks),
    )


def _draw(blocks: Sequence[BlockDamage], axes: Axes) -> None:
    values = np.array([entry.relative_rms for entry in blocks])
    worst = int(values.argmax())
    label = f"most sensitive: {blocks[worst].block}, {values[worst]:.4f}"
    named_bars(axes, values, [entry.block for entry in blocks], worst, label)
    axes.set_ylim(0, float(values.max()) * 1.08 or 1.0)
    axes.set_ylabel("relative RMS of the logits")

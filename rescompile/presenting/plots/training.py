"""Curves of a training, and those of an experiment's networks on the same axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rescompile.presenting.plots.figure import colour, legend
from rescompile.presenting.plots.plot import Plot
from rescompile.training_report import EpochRecord, ExperimentNetwork

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curves(history: Sequence[EpochRecord]) -> Plot:
    """Training and test error of one network against steps."""
    return Plot(
        "curves",
        "Error against steps. The training error is that of the augmented batches, the test error that of all test "
        "images without augmentation.",
        partial(_draw_curves, history),
    )


def compared_curves(networks: Sequence[ExperimentNetwork], *, plain: bool) -> Plot:
    """Training (thin) and test error (bold) of the plain or the residual networks, means over the seeds."""
    kind = "plain" if plain else "residual"
    chosen = [network for network in networks if network.plain == plain]
    return Plot(
        f"curves-{kind}",
        f"Error of the {kind} networks against steps, the mean of the seeds. Thin lines are training errors of the "
        "augmented batches, bold lines test errors.",
        partial(_draw_compared, chosen),
    )


def layer_responses(networks: Sequence[ExperimentNetwork]) -> Plot:
    """Standard deviation of each layer's output, in the order of execution."""
    return Plot(
        "layer-responses",
        "Layer responses: the standard deviation of the output of each 3x3 layer after its norm and before the ReLU "
        "or addition, on test images. Residual networks respond less.",
        partial(_draw_responses, networks),
    )


def _draw_curves(history: Sequence[EpochRecord], axes: Axes) -> None:
    steps = [record.step for record in history]
    axes.plot(
        steps, [record.train_error for record in history], color=colour(1), linewidth=1.2, label="training"
    )
    axes.plot(steps, [record.test_error for record in history], color=colour(0), linewidth=2.2, label="test")
    _finish(axes)


def _draw_compared(networks: Sequence[ExperimentNetwork], axes: Axes) -> None:
    for number, network in enumerate(networks):
        steps = [record.step for record in network.histories[0]]
        means = [
            np.mean([[getattr(record, kind) for record in history] for history in network.histories], axis=0)
            for kind in ("train_error", "test_error")
        ]
        axes.plot(steps, means[0], color=colour(number), linewidth=1.0)
        axes.plot(steps, means[1], color=colour(number), linewidth=2.2, label=network.name)
    _finish(axes)


def _draw_responses(networks: Sequence[ExperimentNetwork], axes: Axes) -> None:
    for number, network in enumerate(networks):
        places = np.arange(1, len(network.responses) + 1)
        style = "--" if network.plain else "-"
        axes.plot(places, network.responses, style, color=colour(number), linewidth=1.4, label=network.name)
    axes.set_xlabel("layer")
    axes.set_ylabel("standard deviation")
    axes.set_ylim(bottom=0)
    legend(axes, columns=4)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("steps")
    axes.set_ylabel("error in %")
    axes.set_ylim(bottom=0)
    legend(axes, columns=4)

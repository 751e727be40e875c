"""What makes a checkpoint hard to quantize, in sentences: outlier activations, dead channels, heavy-tailed weights.

The limits lie above everything in checkpoints that quantize well. Over ResNet-18 and -50 (torchvision's first recipe)
the largest channel of a tensor has up to 6.4 times the range of its median channel, a tensor's range is up to 3.6 times
its 99.99th percentile, and the largest weight of an output channel up to 24 times their RMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.channel_groups import WEIGHTED
from calibration.channels import ChannelHistograms
from calibration.observers import Histogram
from calibration.thresholds import amax_percentile

if TYPE_CHECKING:
    import onnx

OUTLIER_CHANNEL = 12.0
"""Range of the largest channel over that of the median channel."""
OUTLIER_VALUE = 8.0
"""Range of a tensor over its 99.99th percentile."""
HEAVY_ROW = 32.0
"""Largest weight of an output channel over their RMS; the grid's step is then a quarter of the RMS."""
ROW_SPREAD = 30.0
"""Largest weight of the widest output channel over that of the median one."""
MANY_DEAD = 0.25
"""Share of a tensor's channels."""

Kind = Literal["outlier activations", "dead channels", "heavy-tailed weights"]


@dataclass(frozen=True)
class Hardship:
    """One reason, and the worst place of it."""

    kind: Kind
    place: str
    """Tensor or layer."""
    sentence: str


def hard_weights(model: onnx.ModelProto) -> tuple[Hardship, ...]:
    """Layers of the folded fp32 ``model`` whose weights lie far from the grid that their largest one needs."""
    from onnx import numpy_helper

    constants = {entry.name: entry for entry in model.graph.initializer}
    worst: tuple[float, str, float, float] | None = None
    count = 0
    for node in model.graph.node:
        if node.op_type in WEIGHTED:
            heavy, spread = _tails(numpy_helper.to_array(constants[node.input[1]]))
            degree = max(heavy / HEAVY_ROW, spread / ROW_SPREAD)
            if degree > 1:
                count += 1
                worst = max(worst or (0.0, "", 0.0, 0.0), (degree, node.name, heavy, spread))
    if worst is None:
        return ()
    _, name, heavy, spread = worst
    text = (
        f"heavy-tailed weights in {count} layer{'s' * (count > 1)}, worst in {name}: an output channel's largest "
        f"weight is {heavy:.0f} times the RMS, the widest channel {spread:.0f} times the median one"
    )
    return (Hardship("heavy-tailed weights", name, text),)


def _tails(weight: NDArray[np.float32]) -> tuple[float, float]:
    rows = np.abs(weight.reshape(weight.shape[0], -1))
    peaks = rows.max(axis=1)
    alive = peaks > 0
    if not alive.any():
        return 0.0, 0.0
    rms = np.sqrt(np.square(rows[alive], dtype=np.float64).mean(axis=1))
    return float((peaks[alive] / rms).max()), float(peaks.max() / np.median(peaks[alive]))


def hard_activations(
    histograms: Mapping[str, Histogram], channels: Mapping[str, ChannelHistograms] | None
) -> tuple[Hardship, ...]:
    """Tensors with outliers or many dead channels; ``channels`` are those before any equalization."""
    found = (
        [_outlier_value(histograms)] if channels is None else [_outlier_channel(channels), _dead(channels)]
    )
    return tuple(entry for entry in found if entry is not None)


def _outlier_value(histograms: Mapping[str, Histogram]) -> Hardship | None:
    ratios = {name: entry.amax / amax_percentile(entry) for name, entry in histograms.items() if entry.amax}
    return _outlier(
        {name: ratio for name, ratio in ratios.items() if ratio > OUTLIER_VALUE},
        "the largest value is {:.0f} times the 99.99th percentile",
    )


def _outlier_channel(channels: Mapping[str, ChannelHistograms]) -> Hardship | None:
    ratios = {}
    for name, entry in channels.items():
        alive = entry.amax[entry.amax > 0]
        ratios[name] = float(alive.max() / np.median(alive)) if alive.size else 0.0
    return _outlier(
        {name: ratio for name, ratio in ratios.items() if ratio > OUTLIER_CHANNEL},
        "one channel has {:.0f} times the range of the median channel",
    )


def _outlier(ratios: Mapping[str, float], words: str) -> Hardship | None:
    if not ratios:
        return None
    place = max(ratios, key=lambda name: ratios[name])
    text = f"outlier activations in {len(ratios)} tensor{'s' * (len(ratios) > 1)}, worst in {place}: "
    return Hardship("outlier activations", place, text + words.format(ratios[place]))


def _dead(channels: Mapping[str, ChannelHistograms]) -> Hardship | None:
    shares = {name: float((entry.amax == 0).mean()) for name, entry in channels.items()}
    many = {name: share for name, share in shares.items() if share > MANY_DEAD}
    if not many:
        return None
    place = max(many, key=lambda name: many[name])
    text = (
        f"dead channels: {100 * many[place]:.0f} % of {place} is zero in every calibration image "
        f"({len(many)} tensor{'s' * (len(many) > 1)} above {100 * MANY_DEAD:.0f} %)"
    )
    return Hardship("dead channels", place, text)

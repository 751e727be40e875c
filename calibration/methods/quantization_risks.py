"""Properties of a checkpoint that make it hard to quantize: outlier activations, dead channels, heavy-tailed weights.

The limits lie above everything in checkpoints that quantize well. Over ResNet-18 and -50 (torchvision's first recipe)
the largest channel of a tensor has up to 6.4 times the range of its median channel, a tensor's range is up to 3.6 times
its 99.99th percentile, and the largest weight of an output channel up to 24 times their RMS.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.methods.thresholds import amax_percentile
from calibration.operators import WEIGHTED_OPS
from calibration.statistics.channels import ChannelHistograms
from calibration.statistics.observers import Histogram

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
class Risk:
    """One kind of risk, and the tensor or layer where it is worst."""

    kind: Kind
    place: str
    sentence: str


def weight_risks(model: onnx.ModelProto) -> tuple[Risk, ...]:
    """Layers of the folded fp32 ``model`` whose weights lie far from the grid that their largest one needs."""
    from onnx import numpy_helper

    constants = {entry.name: entry for entry in model.graph.initializer}
    risky = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED_OPS:
            heavy, spread = _tails(numpy_helper.to_array(constants[node.input[1]]))
            degree = max(heavy / HEAVY_ROW, spread / ROW_SPREAD)
            if degree > 1:
                risky.append((degree, node.name, heavy, spread))
    if not risky:
        return ()
    _, name, heavy, spread = max(risky)
    text = (
        f"heavy-tailed weights in {_count(risky, 'layer')}, worst in {name}: an output channel's largest "
        f"weight is {heavy:.0f} times the RMS, the widest channel {spread:.0f} times the median one"
    )
    return (Risk("heavy-tailed weights", name, text),)


def _tails(weight: NDArray[np.float32]) -> tuple[float, float]:
    """Largest weight over the RMS of its output channel, and the widest output channel over the median one."""
    rows = np.abs(weight.reshape(weight.shape[0], -1))
    peaks = rows.max(axis=1)
    alive = peaks > 0
    if not alive.any():
        return 0.0, 0.0
    rms = np.sqrt(np.square(rows[alive], dtype=np.float64).mean(axis=1))
    return float((peaks[alive] / rms).max()), float(peaks.max() / np.median(peaks[alive]))


def activation_risks(
    histograms: Mapping[str, Histogram], channels: Mapping[str, ChannelHistograms] | None
) -> tuple[Risk, ...]:
    """Tensors with outliers or many dead channels; ``channels`` are those before any equalization."""
    if channels is None:
        ratios = {
            name: entry.amax / amax_percentile(entry) for name, entry in histograms.items() if entry.amax
        }
        return _outliers(ratios, OUTLIER_VALUE, "the largest value is {:.0f} times the 99.99th percentile")
    ratios = {name: _widest_channel(entry) for name, entry in channels.items()}
    words = "one channel has {:.0f} times the range of the median channel"
    return _outliers(ratios, OUTLIER_CHANNEL, words) + _dead_channels(channels)


def _widest_channel(entry: ChannelHistograms) -> float:
    alive = entry.amax[entry.amax > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 0.0


def _outliers(ratios: Mapping[str, float], limit: float, words: str) -> tuple[Risk, ...]:
    high = {name: ratio for name, ratio in ratios.items() if ratio > limit}
    if not high:
        return ()
    place = max(high, key=lambda name: high[name])
    text = f"outlier activations in {_count(high, 'tensor')}, worst in {place}: {words.format(high[place])}"
    return (Risk("outlier activations", place, text),)


def _dead_channels(channels: Mapping[str, ChannelHistograms]) -> tuple[Risk, ...]:
    shares = {name: float((entry.amax == 0).mean()) for name, entry in channels.items()}
    many = {name: share for name, share in shares.items() if share > MANY_DEAD}
    if not many:
        return ()
    place = max(many, key=lambda name: many[name])
    text = (
        f"dead channels: {100 * many[place]:.0f} % of {place} is zero in every calibration image "
        f"({_count(many, 'tensor')} above {100 * MANY_DEAD:.0f} %)"
    )
    return (Risk("dead channels", place, text),)


def _count(entries: Collection[object], noun: str) -> str:
    return f"{len(entries)} {noun}{'s' * (len(entries) > 1)}"

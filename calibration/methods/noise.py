"""Error that 8-bit grids cause in the logits, as a function of channel factors and step sizes, with its gradient.

Channel c of tensor t is divided by its factor f_c and rounded to multiples of the tensor's step d_t, so in its own
unit its step is u = d_t * f_c, and it is clipped at 127 u, or at 255 u where the tensor has the full range. With e_c(u)
the expected squared error of that, from the channel's histogram, and G, F of ``sensitivity``:

    activations   sum over t, c   G_tc * e_tc(d_t * f_c)        weighted by magnitude
    weights       sum over o, k   F_ok / f_k^2 * (max_k |W_ok| f_k / 127)^2 / 12

A row's own factor divides its weights and its scale alike, so it does not appear. Both sums are relative to the
squared norm of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.methods.channel_groups import ChannelGroups
from calibration.network import groups_of, output_first, read_nodes, weighted_nodes
from calibration.operators import operator
from calibration.scales import LEVELS
from calibration.statistics.channels import BINS, ChannelHistograms
from calibration.statistics.sensitivity import Sensitivity, bucket_of

if TYPE_CHECKING:
    import onnx

TAIL = ((1.25, 0.4), (1.5, 0.12), (2.0, 0.04))
"""Allowance for images that calibration has not seen: (size, share) says that this share of a channel's values is that
many times as large, where 100 images were seen and each shows one value of the channel. The shares fall with more
images, as one over their number, and with n values an image, as 1 / sqrt(n), because the largest is better known.
Errors of clipping also add up, in the deep layers to ten times what independent errors do, so the shares are larger
than what images exceed. Chosen on ResNet-18 and -50 (100 images) and ResNet-20 (64 and 512), judged on other images."""
_TAIL_IMAGES = 100
_MOST_TAIL = 1.5

_CHUNK = 1 << 16
"""Weights that are scaled at a time: they stay in the second-level cache."""
_LOWEST, _HIGHEST, _POINTS = -13.0, 3.0, 65
"""log2 of step over amax: from steps that lose nothing to steps that lose everything."""
_SPACING = (_HIGHEST - _LOWEST) / (_POINTS - 1) * float(np.log(2.0))

Array = NDArray[np.float64]


@cache
def _bin_errors(levels: int) -> Array:
    """[BINS, _POINTS] mean squared error in each bin of a channel with range 1, for every step of the grid.

    The integral is explained at ``thresholds.squared_errors``.
    """
    edges = np.arange(BINS + 1)[:, None] / BINS
    steps = 2.0 ** np.linspace(_LOWEST, _HIGHEST, _POINTS)
    nearest = np.minimum(np.rint(edges / steps), levels)
    integral = nearest * steps**3 / 12 + (edges - nearest * steps) ** 3 / 3
    return np.diff(integral, axis=0) * BINS


def _with_tail(errors: Array, weight: float) -> Array:
    """``errors`` [C, _POINTS] of a mixture of each channel with enlarged copies of itself."""
    grid = np.arange(_POINTS)
    result = errors * (1 - weight * sum(share for _, share in TAIL))
    for size, share in TAIL:
        at = np.clip(grid - np.log(size) / _SPACING, 0, _POINTS - 1)
        low = np.minimum(at.astype(int), _POINTS - 2)
        part = at - low
        result += weight * share * size**2 * (errors[:, low] * (1 - part) + errors[:, low + 1] * part)
    return result


@dataclass(frozen=True)
class Curves:
    """G_tc * e_tc(u) of some channels, interpolated in log-log between ``_POINTS`` step sizes."""

    log_errors: Array  # [C, _POINTS]
    log_rises: Array  # [C, _POINTS]
    log_units: Array
    """[C], of the channels' ranges."""

    @staticmethod
    def joined(parts: Sequence[Curves]) -> Curves:
        """The curves of the channels of all ``parts``."""
        return Curves(
            np.concatenate([part.log_errors for part in parts]),
            np.concatenate([part.log_rises for part in parts]),
            np.concatenate([part.log_units for part in parts]),
        )

    def __call__(self, log_steps: Array) -> tuple[Array, Array]:
        """Errors and their derivatives by ``log_steps`` [..., C], the logarithms of the channels' own steps."""
        position = (log_steps - self.log_units) / _SPACING - _LOWEST / ((_HIGHEST - _LOWEST) / (_POINTS - 1))
        np.clip(position, 0, _POINTS - 1 - 1e-9, out=position)
        low = position.astype(np.intp)
        position -= low
        low += np.arange(len(self.log_units)) * _POINTS
        left, rise = self.log_errors.reshape(-1)[low], self.log_rises.reshape(-1)[low]
        errors = np.exp(left + rise * position)
        return errors, errors * rise / _SPACING


class ActivationNoise:
    """The first sum for one tensor."""

    def __init__(
        self,
        histograms: ChannelHistograms,
        sensitivity: Array,
        logits: float,
        *,
        tail: float,
        magnitudes: Array | None = None,
        levels: int = LEVELS,
    ) -> None:
        """``tail`` is the weight of ``TAIL``; ``magnitudes`` [BUCKETS] as in ``Sensitivity``."""
        self.levels = levels
        """Steps from zero to the clipping threshold."""
        unit = np.maximum(histograms.bin_widths * BINS, 1e-30)
        shares = histograms.counts / histograms.counts.sum(axis=1, keepdims=True)
        if magnitudes is not None:
            centres = (np.arange(BINS) + 0.5) * histograms.bin_widths[:, None]
            shares = shares * magnitudes[bucket_of(centres / np.maximum(histograms.amax, 1e-30)[:, None])]
        errors = _with_tail(shares @ _bin_errors(levels), tail)
        scale = unit**2 * sensitivity / logits
        log_errors = np.log(np.maximum(errors * scale[:, None], 1e-30))
        self.curves = Curves(log_errors, np.diff(log_errors, append=log_errors[:, -1:]), np.log(unit))
        self.log_ranges = np.log(np.maximum(histograms.amax, 1e-30))
        """[C]"""

    def __call__(self, log_steps: Array) -> tuple[Array, Array]:
        """Errors and their derivatives by ``log_steps`` [..., C], the logarithms of the channels' own steps."""
        return self.curves(log_steps)


class WeightNoise:
    """The second sum for one convolution or classifier, by the factors of its input channels."""

    def __init__(
        self, weight: NDArray[np.float32], sensitivity: NDArray[np.floating], logits: float, groups: int = 1
    ) -> None:
        """``weight`` is [O, I, ...] in ``groups``, ``sensitivity`` [O, I]; I channels for each group."""
        rows, channels = weight.shape[:2]
        peaks = np.abs(weight.reshape(rows, channels, -1)).max(axis=2)
        self._peaks = peaks.reshape(groups, rows // groups, channels)
        scaled = (sensitivity / (12 * LEVELS**2 * logits)).astype(np.float32)
        self._sensitivity = scaled.reshape(self._peaks.shape)

    def __call__(self, log_factors: Array) -> tuple[float, Array]:
        """Error, and its derivatives [C] by ``log_factors`` [C]."""
        groups, outputs, channels = self._peaks.shape
        factors = np.exp(log_factors).astype(np.float32).reshape(groups, 1, channels)
        inverse = 1 / np.square(factors, dtype=np.float64)
        divisors = inverse[:, 0].astype(np.float32)
        widest, errors = np.empty((groups, outputs), np.intp), np.empty((groups, outputs))
        sums = np.zeros((groups, channels))
        step = max(1, _CHUNK // (groups * channels))
        for start in range(0, outputs, step):
            rows = slice(start, start + step)
            scaled, sensitivity = self._peaks[:, rows] * factors, self._sensitivity[:, rows]
            widest[:, rows] = scaled.argmax(axis=2)
            squares = np.square(
                np.take_along_axis(scaled, widest[:, rows, None], 2)[..., 0], dtype=np.float64
            )
            # einsum, because threads of a matrix library would get in the way of those that call this
            errors[:, rows] = np.einsum("gok,gk->go", sensitivity, divisors) * squares
            sums += np.einsum("go,gok->gk", squares.astype(np.float32), sensitivity)
        gradient = (-2 * inverse[:, 0] * sums).reshape(-1)
        places = widest + channels * np.arange(groups)[:, None]
        gradient += np.bincount(places.reshape(-1), 2 * errors.reshape(-1), minlength=len(gradient))
        return float(errors.sum()), gradient


@dataclass(frozen=True)
class NoiseModel:
    """The whole sum, for one network."""

    groups: ChannelGroups
    activations: dict[str, ActivationNoise]
    weights: dict[str, WeightNoise]
    """Keyed by the weighted node's name."""
    inputs: dict[str, str]
    """Weighted node to the tensor that it reads."""

    @cached_property
    def activation_curves(self) -> Curves:
        """The curves of all channels, in the order of ``activations``."""
        return Curves.joined([noise.curves for noise in self.activations.values()])

    @cached_property
    def activation_groups(self) -> NDArray[np.int64]:
        """The group of each channel of ``activation_curves``."""
        return np.concatenate([self.groups.of[name] for name in self.activations])

    @cached_property
    def activation_tensors(self) -> NDArray[np.int64]:
        """The tensor of each channel of ``activation_curves``, by its number."""
        return np.repeat(
            np.arange(len(self.activations)), [len(self.groups.of[name]) for name in self.activations]
        )

    @cached_property
    def weight_groups(self) -> NDArray[np.int64]:
        """The group of each input channel of all weighted nodes, node by node."""
        return np.concatenate([self.groups.of[self.inputs[name]] for name in self.weights])


def noise_model(
    model: onnx.ModelProto,
    groups: ChannelGroups,
    histograms: Mapping[str, ChannelHistograms],
    sensitivity: Sensitivity,
    levels: Mapping[str, int] | None = None,
) -> NoiseModel:
    """Noise model of a folded fp32 graph whose quantized tensors have ``histograms``, and ``levels`` if not LEVELS."""
    from onnx import numpy_helper

    constants = {entry.name: entry for entry in model.graph.initializer}
    weighted = weighted_nodes(model, histograms)
    bounded = bounded_tensors(model)
    activations = {
        name: ActivationNoise(
            entry,
            sensitivity.activations[name],
            sensitivity.logits,
            tail=0.0 if name in bounded else tail_weight(entry),
            magnitudes=sensitivity.magnitudes.get(name),
            levels=(levels or {}).get(name, LEVELS),
        )
        for name, entry in histograms.items()
    }
    weights = {
        node.name: WeightNoise(
            output_first(node, numpy_helper.to_array(constants[node.inputs[1]])),
            sensitivity.weights[node.name],
            sensitivity.logits,
            groups_of(node),
        )
        for node in weighted
    }
    return NoiseModel(groups, activations, weights, {node.name: node.inputs[0] for node in weighted})


def tail_weight(entry: ChannelHistograms) -> float:
    """Weight of ``TAIL`` for a tensor that has no bounds."""
    return min(_TAIL_IMAGES / entry.images, _MOST_TAIL) / float(np.sqrt(entry.positions))


def bounded_tensors(model: onnx.ModelProto) -> set[str]:
    """Tensors that no image takes beyond fixed bounds: the network's input, as pixels are, and what ReLU6 makes."""
    found = {model.graph.input[0].name}
    constants = {entry.name for entry in model.graph.initializer}
    for node in read_nodes(model):
        entry, data = operator(node.op), [name for name in node.inputs if name and name not in constants]
        moved = entry.moves and all(name in found for name in data)
        averaged = node.op in ("AveragePool", "GlobalAveragePool") and node.inputs[0] in found
        open_ended = node.op == "Clip" and (len(node.inputs) < 3 or not node.inputs[2])
        if (entry.bounded and not open_ended) or (data and (moved or averaged)):
            found.add(node.output)
    return found

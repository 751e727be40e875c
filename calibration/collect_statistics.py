"""One pass over the images, and everything that is derived from it: histograms, means, thresholds, channel factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.methods.channel_groups import channel_groups
from calibration.methods.equalization import equalize
from calibration.methods.noise import NoiseModel, noise_model
from calibration.methods.quantization_risks import Risk, activation_risks
from calibration.methods.rounding import first_moments
from calibration.statistics.collect import collect, collect_channels
from calibration.statistics.half import HalfNetwork
from calibration.statistics.observers import Histogram
from calibration.statistics.sensitivity import IMAGES, measure_sensitivity

if TYPE_CHECKING:
    import onnx

Images = NDArray[np.float32]
MOMENT_IMAGES = 16
"""Images from which the first convolution's moments are taken."""


@dataclass(frozen=True)
class Statistics:
    """Result of ``collect_statistics``, in the terms of ``table.make_table``."""

    histograms: Mapping[str, Histogram]
    """Taken after the division by ``factors``, where there are any."""
    means: Mapping[str, NDArray[np.floating]] | None = None
    logit: Mapping[str, float] | None = None
    factors: Mapping[str, NDArray[np.floating]] | None = None
    samples: tuple[Images, ...] = ()
    """Preprocessed images [C, H, W], evenly chosen."""
    noise: NoiseModel | None = None
    """Present where gradients were taken."""
    risks: tuple[Risk, ...] = ()
    """Risks of the activations, as the checkpoint has them."""
    first: NDArray[np.float32] | None = None
    """Result of ``rounding.first_moments``."""


@dataclass(frozen=True)
class StatisticsRequest:
    """The statistics that ``collect_statistics`` is asked for, beyond a histogram of every tensor."""

    channels: bool
    """A histogram and a mean of every channel."""
    gradients: bool
    """The logits' sensitivity, and thresholds chosen by it."""
    equalize: bool
    """Channel factors chosen by it as well."""
    samples: int
    """Number of images to keep."""
    half: HalfNetwork | None = None
    """The network in bfloat16, from which the channels' histograms and means come."""
    levels: Mapping[str, int] = field(default_factory=dict)
    """Steps of the tensors that have others than ``scales.LEVELS``."""


def collect_statistics(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Images],
    request: StatisticsRequest,
    *,
    count: int,
    progress: Callable[[int, int], None],
) -> Statistics:
    """Run ``count`` images [N, C, H, W] in ``batches`` through the folded fp32 ``model``, once.

    Raises:
        CalibrationError: errors of ``collect``, or operations whose gradient or channels are not known.
    """
    gradients = min(count, IMAGES) if request.gradients else 0
    total = count + gradients
    samples = Samples(count, max(request.samples, MOMENT_IMAGES))
    stream = samples.watch(batches)

    def passed(done: int) -> None:
        progress(done, total)

    if not request.channels:
        histograms = collect(model, tensors, stream, passed)
        first = first_moments(model, samples.spread(MOMENT_IMAGES))
        return Statistics(histograms, risks=activation_risks(histograms, None), first=first)
    channels = collect_channels(model, tensors, stream, passed, half=request.half)
    first = first_moments(model, samples.spread(MOMENT_IMAGES))
    kept = tuple(samples.spread(request.samples))
    means = {name: entry.means for name, entry in channels.items()}
    logit, factors, noise = None, None, None
    if gradients:
        sensitivity = measure_sensitivity(
            model, tensors, samples.spread(gradients), channels, progress=lambda done: passed(count + done)
        )
        noise = noise_model(model, channel_groups(model), channels, sensitivity, request.levels)
        chosen = equalize(noise, channels=request.equalize)
        logit = chosen.thresholds
        factors = {name: chosen.factors[name] for name in tensors} if request.equalize else None
    merged = {
        name: entry.merged(None if factors is None else factors[name].astype(np.float64))
        for name, entry in channels.items()
    }
    return Statistics(merged, means, logit, factors, kept, noise, activation_risks(merged, channels), first)


class Samples:
    """Keeps some images of a stream, evenly chosen, as they pass."""

    def __init__(self, count: int, wanted: int) -> None:
        """``count`` images will pass, ``wanted`` are kept."""
        self._chosen = set(_evenly(count, wanted))
        self._images: list[Images] = []

    def watch(self, batches: Iterable[Images]) -> Iterator[Images]:
        """Yield ``batches`` unchanged, and copy the chosen images as they pass."""
        passed = 0
        for batch in batches:
            # a copy: a view would keep the whole batch alive
            self._images += [
                image.copy() for number, image in enumerate(batch, passed) if number in self._chosen
            ]
            passed += len(batch)
            yield batch

    def spread(self, wanted: int) -> list[Images]:
        """At most ``wanted`` of the images that were kept, evenly chosen."""
        return [self._images[index] for index in _evenly(len(self._images), wanted)]


def _evenly(count: int, wanted: int) -> list[int]:
    return [int(index) for index in np.linspace(0, count - 1, min(count, wanted)).round()]

"""One pass over the images, and everything that is derived of it: histograms, means, thresholds, channel factors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.channel_groups import channel_groups
from calibration.channels import ChannelHistograms
from calibration.collect import collect, collect_channels
from calibration.equalization import equalize
from calibration.hardness import Hardship, hard_activations
from calibration.noise import NoiseModel, noise_model
from calibration.observers import Histogram
from calibration.rounding import first_moments
from calibration.sensitivity import IMAGES, measure_sensitivity

if TYPE_CHECKING:
    import onnx

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Survey:
    """What was seen, as ``table.make_table`` takes it."""

    histograms: Mapping[str, Histogram]
    """After the division by ``factors``, where there are any."""
    means: Mapping[str, NDArray[np.floating]] | None = None
    logit: Mapping[str, float] | None = None
    factors: Mapping[str, NDArray[np.floating]] | None = None
    samples: tuple[Images, ...] = ()
    """Preprocessed images [3, H, W], evenly chosen."""
    noise: NoiseModel | None = None
    """Where gradients were taken."""
    hardships: tuple[Hardship, ...] = ()
    """Of the activations, as the checkpoint has them."""
    first: NDArray[np.float32] | None = None
    """As ``rounding.first_moments``."""


@dataclass(frozen=True)
class Wanted:
    """How far the survey goes."""

    channels: bool
    """A histogram and a mean of every channel."""
    gradients: bool
    """The logits' sensitivity, and thresholds chosen by it."""
    equalize: bool
    """Channel factors chosen by it as well."""
    samples: int
    """Images to keep."""
    levels: Mapping[str, int] = field(default_factory=dict)
    """Steps of the tensors that have others than ``scales.LEVELS``."""


def survey(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Images],
    wanted: Wanted,
    *,
    count: int,
    progress: Callable[[int, int], None],
) -> Survey:
    """Run ``count`` images [N, 3, H, W] in ``batches`` through the folded fp32 ``model``, once.

    Raises:
        CalibrationError: as ``collect``, or operations whose gradient or channels are not known.
    """
    total = count + (min(count, IMAGES) if wanted.gradients else 0)
    samples = Samples(count, max(wanted.samples, IMAGES))
    stream, serialized = samples.of(batches), model.SerializeToString()

    def passed(done: int) -> None:
        progress(done, total)

    if not wanted.channels:
        histograms = collect(serialized, tensors, stream, progress=passed)
        first = first_moments(model, samples.spread(IMAGES))
        return Survey(histograms, hardships=hard_activations(histograms, None), first=first)
    channels = collect_channels(serialized, tensors, stream, progress=passed)
    first = first_moments(model, samples.spread(IMAGES))
    kept = tuple(samples.spread(wanted.samples))
    means = {name: entry.means for name, entry in channels.items()}
    if not wanted.gradients:
        merged = _merged(channels, None)
        hardships = hard_activations(merged, channels)
        return Survey(merged, means, samples=kept, hardships=hardships, first=first)
    sensitivity = measure_sensitivity(
        model, tensors, samples.spread(IMAGES), channels, progress=lambda done: passed(count + done)
    )
    noise = noise_model(model, channel_groups(model), channels, sensitivity, wanted.levels)
    chosen = equalize(noise, channels=wanted.equalize)
    factors = {name: chosen.factors[name] for name in tensors} if wanted.equalize else None
    merged = _merged(channels, factors)
    hardships = hard_activations(merged, channels)
    return Survey(merged, means, chosen.thresholds, factors, kept, noise, hardships, first)


def _merged(
    channels: Mapping[str, ChannelHistograms], factors: Mapping[str, NDArray[np.float32]] | None
) -> dict[str, Histogram]:
    return {
        name: entry.merged(None if factors is None else factors[name].astype(np.float64))
        for name, entry in channels.items()
    }


class Samples:
    """Keeps some images of a stream, evenly chosen, as they pass."""

    def __init__(self, count: int, wanted: int) -> None:
        """``count`` images will pass, ``wanted`` are kept."""
        self._chosen = set(_evenly(count, wanted))
        self._images: list[Images] = []

    def of(self, batches: Iterable[Images]) -> Iterator[Images]:
        """The same batches."""
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

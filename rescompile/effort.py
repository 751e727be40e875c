"""The recipes behind ``--effort``: sets of methods, each of which can also be chosen by itself.

fast       thresholds from histograms; weights rounded to the nearest, the first convolution's against its pixels
balanced   also: channels equalized, thresholds by what they do to the logits, biases corrected; all 256 values of
           int8 for what is never negative, where that costs the backend nothing
best       also: weights rounded against each other, layer by layer; all 256 values wherever the backend can
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from rescompile.backends.base import FullRange

Effort = Literal["fast", "balanced", "best"]
Rounding = Literal["nearest", "learned"]
WeightScales = Literal["max", "mse"]

EFFORTS: tuple[str, ...] = get_args(Effort)
DEFAULT_EFFORT: Effort = "balanced"


@dataclass(frozen=True)
class Recipe:
    """The methods of one calibration."""

    method: str
    """Chooses the thresholds of activations."""
    equalize: bool
    bias_correction: bool
    rounding: Rounding
    weight_scales: WeightScales = "max"
    full_range: tuple[FullRange, ...] = ()
    """On which backends zero is stored as -128 where ``topology.full_range_tensors`` allows it."""

    @property
    def needs_gradients(self) -> bool:
        """Whether the logits' sensitivity must be measured."""
        return self.equalize or self.method == "logit"

    @property
    def needs_channels(self) -> bool:
        """Whether every channel needs a histogram and a mean of its own."""
        return self.needs_gradients or self.bias_correction or self.rounding == "learned"


RECIPES: dict[Effort, Recipe] = {
    "fast": Recipe("mse", equalize=False, bias_correction=False, rounding="nearest"),
    "balanced": Recipe(
        "logit", equalize=True, bias_correction=True, rounding="nearest", full_range=("free",)
    ),
    "best": Recipe(
        "logit", equalize=True, bias_correction=True, rounding="learned", full_range=("free", "costs")
    ),
}

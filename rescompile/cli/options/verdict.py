"""The images and limits that decide whether an engine passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rescompile.cli.options.shared import option
from rescompile.errors import UsageError

if TYPE_CHECKING:
    from rescompile.report import Limits

_verdict = partial(option, "Verdict")


@dataclass(frozen=True)
class VerdictOptions:
    """The images and limits that decide whether an engine passes."""

    validation_set: Annotated[
        Path | None,
        _verdict("Images to compare the engine with the fp32 network on; labels give top-1 accuracy."),
    ] = None
    validation_images: Annotated[
        int | None, _verdict("Use at most this many images of the validation set. Default: all.")
    ] = None
    validate: Annotated[
        Literal["certain", "all"],
        _verdict(
            "certain (default): stop where the images that are left would change the verdict with a probability of at "
            "most 0.1 %; all: compare every image."
        ),
    ] = "certain"
    min_agreement: Annotated[
        float | None, _verdict("Smallest share of images with the fp32 network's top-1 class: 0.97.")
    ] = None
    max_top1_drop: Annotated[
        float | None, _verdict("Largest loss of top-1 accuracy in percentage points: 0.3.", "--max-top1-drop")
    ] = None
    max_relative_rms: Annotated[
        float | None, _verdict("Largest RMS of the logits' error, relative to the RMS of the logits: 0.05.")
    ] = None

    min_top1: Annotated[
        float | None,
        _verdict(
            "Smallest top-1 accuracy of the engine: 0.76. It also finds wrong preprocessing.", "--min-top1"
        ),
    ] = None
    min_cosine: Annotated[
        float | None,
        _verdict(
            "For features: smallest cosine between the engine's and fp32 outputs of one image, such as 0.99."
        ),
    ] = None
    max_error: Annotated[
        float | None, _verdict("For values: largest error of one output in its own unit, such as 0.02.")
    ] = None
    min_speedup: Annotated[
        float | None,
        _verdict(
            "Smallest ratio of the fp32 network's time to the engine's on this machine (CPU engines): 1.5. The limits "
            "above replace the default ones together; this one does not."
        ),
    ] = None

    def limits(self) -> Limits | None:
        """The limits that were asked for, or None without any.

        Raises:
            UsageError: a limit that no engine or every engine meets.
        """
        from rescompile.report import Limits

        asked = {field: getattr(self, field) for field in Limits.__struct_fields__}
        if not any(value is not None for value in asked.values()):
            return None
        _between(self.min_agreement, "--min-agreement", 0.0, 1.0, "it is a share, 0.97 for 97 %")
        _between(self.max_top1_drop, "--max-top1-drop", 0.0, 100.0, "it is in percentage points, 0.3")
        _between(self.min_top1, "--min-top1", 0.0, 1.0, "it is a share, 0.76 for 76 %")
        _between(self.max_relative_rms, "--max-relative-rms", 0.0, 1e6, "it is a ratio, 0.05")
        _between(self.min_cosine, "--min-cosine", -1.0, 1.0, "it is a cosine, 0.99")
        _between(self.max_error, "--max-error", 0.0, math.inf, "it is in the outputs' own unit, 0.02")
        _between(self.min_speedup, "--min-speedup", 0.0, math.inf, "it is a ratio, 1.5")
        return Limits(**asked)


def _between(value: float | None, option: str, low: float, high: float, meaning: str) -> None:
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        within = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a number of {low:g} or more"
        raise UsageError(f"{option} {value:g} is not {within}; {meaning}")

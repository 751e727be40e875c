"""The images and methods that choose INT8 scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rescompile.cli.options.shared import SKIP, option

if TYPE_CHECKING:
    from rescompile.config import CalibrationConfig

_calibration = partial(option, "Calibration")
_method = partial(option, "Calibration methods")


@dataclass(frozen=True)
class CalibrationOptions:
    """The images and methods that choose INT8 scales."""

    calibration_set: Annotated[
        Path | None,
        _calibration("Images to choose INT8 scales with: a folder or .npz; labels are not needed."),
    ] = None
    calibration_images: Annotated[
        int, _calibration("Use at most this many images of the calibration set (or built-in photographs).")
    ] = 512
    calibration_method: Annotated[
        str | None,
        _calibration(
            "How thresholds are chosen: max, percentile[:99.99], mse, entropy or logit. Default: by --effort, or the "
            "table's own."
        ),
    ] = None
    effort: Annotated[
        Literal["fast", "balanced", "best"] | None,
        _calibration(
            "fast: from histograms alone; balanced (default): also equalizes channels and corrects biases; best: also "
            "learns the rounding of weights.",
        ),
    ] = None
    equalize: Annotated[
        bool | None,
        _method(
            "Equalize the ranges of channels across layers. Default: by --effort.", "--equalize/--no-equalize"
        ),
    ] = None
    bias_correction: Annotated[
        bool | None,
        _method(
            "Change biases to cancel the shift that rounded weights cause. Default: by --effort.",
            "--bias-correction/--no-bias-correction",
        ),
    ] = None
    rounding: Annotated[
        Literal["nearest", "learned"] | None, _calibration("How weights are rounded. Default: by --effort.")
    ] = None
    weight_scales: Annotated[
        Literal["max", "mse"] | None, _calibration("How weight scales are chosen. Default: max.")
    ] = None
    full_range: Annotated[
        bool | None,
        _method(
            "Use all 256 values of int8 after a ReLU, even where that adds channels. Default: by --effort.",
            "--full-range/--no-full-range",
        ),
    ] = None
    fast_collect: Annotated[
        bool,
        _calibration(
            "Collect the activations' statistics in bfloat16, where this CPU has it (AMX, AVX512-BF16).",
            "--fast-collect",
        ),
    ] = False
    skip_unreadable: Annotated[bool, _calibration(SKIP, "--skip-unreadable")] = False

    def config(self, *, table: Path | None = None, seed: int = 0) -> CalibrationConfig:
        """These options as configuration."""
        from rescompile.config import CalibrationConfig

        return CalibrationConfig(
            images=self.calibration_set,
            table=table,
            method=self.calibration_method,
            effort=self.effort,
            equalize=self.equalize,
            bias_correction=self.bias_correction,
            rounding=self.rounding,
            weight_scales=self.weight_scales,
            full_range=self.full_range,
            limit=self.calibration_images,
            seed=seed,
            skip_unreadable=self.skip_unreadable,
            fast_collect=self.fast_collect,
        )

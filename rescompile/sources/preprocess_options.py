"""The user's changes to a network's preprocessing, checked when they are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from calibration.errors import ImageSetError
from calibration.mean_image import MeanFile, read_mean
from calibration.preprocess import CHANNELS, IMAGENET, MAX_SIDE, Color, Preprocess, Size, size_words
from rescompile.errors import UsageError
from rescompile.wording import counted

_CAFFE_BGR = (103.939, 116.779, 123.68)
"""ImageNet's means of blue, green and red, as Caffe's networks subtract them."""
_DEFAULT_COLOR: dict[int, Color] = {1: "GRAY", 3: "RGB"}


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """Changes to a network's own preprocessing; None keeps the network's value, and ``resize=0`` turns resizing off."""

    resize: Size | None = None
    """Shorter side, or height and width without keeping the ratio."""
    crop: Size | None = None
    """Side, or height and width."""
    crop_pct: float | None = None
    """timm's crop percentage: the shorter side becomes the crop divided by this."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    mean: tuple[float, ...] | Path | None = None
    """One value for each channel, or one for all; or a file in pixel values of 0 to 255."""
    std: tuple[float, ...] | None = None
    color: Color | None = None
    whole: Preprocess | None = None
    """The preprocessing that a program passes, in place of the network's own."""

    def __post_init__(self) -> None:
        _check_size(self.crop, "--crop", 1, "224, or a height and width, such as 256x128")
        _check_size(self.resize, "--resize", 0, "256, 224x224 to change the ratio, or 0 for no resizing")
        if self.crop_pct is not None:
            if not 0 < self.crop_pct <= 1:
                raise UsageError(
                    f"--crop-pct {self.crop_pct:g} is not between 0 and 1; pass timm's, such as 0.95"
                )
            if self.resize is not None or isinstance(self.crop, tuple):
                raise UsageError(
                    "--crop-pct says how large a square crop is resized; pass --resize instead, or alone"
                )
        for values, option in ((self.mean, "--mean"), (self.std, "--std")):
            if isinstance(values, tuple) and len(values) not in {1, 3, 4}:
                raise UsageError(
                    f"{option} has {len(values)} values; pass one for each channel, which are 1, 3 or 4"
                )
        _check_range(None if isinstance(self.mean, Path) else self.mean, self.std, self.color)
        _ = self._mean_file  # a file that cannot be used is refused now, not after the weights were loaded

    @cached_property
    def _mean_file(self) -> MeanFile | None:
        if not isinstance(self.mean, Path):
            return None
        try:
            return read_mean(self.mean)
        except ImageSetError as error:
            raise UsageError(f"--mean: {error}") from None

    @property
    def states_normalization(self) -> bool:
        """Whether the user says how pixels become the network's numbers."""
        return (self.mean, self.std, self.color, self.whole) != (None, None, None, None)

    def apply(self, default: Preprocess = IMAGENET, *, channels: int = 3) -> Preprocess:
        """``default`` with these changes, for a network that takes ``channels`` channels.

        Raises:
            UsageError: values that do not fit together or the network.
        """
        default = self.whole or default
        color = self._color(default, channels)
        crop = self.crop or default.crop
        resize = self._resize(default, crop)
        mean, mean_image = self._mean(default, color, crop, resize)
        # a mean file alone means pixels that are not scaled any further
        usual = (1.0,) if isinstance(self.mean, Path) else _kept(default.std, channels)
        std = _for_channels(self.std or usual, channels, "--std")
        if mean is None or std is None:
            raise UsageError(
                f"nothing says how the images of this network, of {counted(channels, 'channel')}, are normalized; "
                "pass --mean and --std in values of 0 to 1, as in its training (preprocess= in Python)"
            )
        try:
            return Preprocess(
                resize=resize,
                crop=crop,
                interpolation=self.interpolation or default.interpolation,
                mean=mean,
                std=std,
                color=color,
                mean_image=mean_image,
            )
        except ValueError as error:
            raise UsageError(f"the preprocessing options do not fit together: {error}") from None

    def _color(self, default: Preprocess, channels: int) -> Color:
        color = self.color or (
            default.color if default.channels == channels else _DEFAULT_COLOR.get(channels)
        )
        if color is None and channels == 4:
            raise UsageError(
                "the network takes 4 channels, and nothing says what the fourth is; pass --color RGBA "
                "if it is opacity (preprocess= in Python)"
            )
        if color is None:
            raise UsageError(f"the network takes {channels} channels; images can have 1, 3 or 4")
        if CHANNELS[color] != channels:
            fitting = " or ".join(name for name, count in CHANNELS.items() if count == channels)
            raise UsageError(
                f"--color {color} makes {CHANNELS[color]} channels, the network takes {channels}; pass {fitting}"
            )
        return color

    def _resize(self, default: Preprocess, crop: Size) -> Size | None:
        if self.resize is not None:
            return self.resize or None
        if self.crop_pct is not None:
            if isinstance(crop, tuple):
                raise UsageError("--crop-pct needs a square crop; pass --resize instead")
            return min(math.floor(crop / self.crop_pct), MAX_SIDE)
        return default.resize_for(crop)

    def _mean(
        self, default: Preprocess, color: Color, crop: Size, resize: Size | None
    ) -> tuple[tuple[float, ...] | None, bytes]:
        """The mean of each channel (None where nothing says it), and the mean image."""
        channels = CHANNELS[color]
        if self._mean_file is not None:
            if self._mean_file.from_caffe and self.color is None and channels == 3:
                raise UsageError(
                    f"{self._mean_file.path} is Caffe's, whose networks usually take blue first; pass --color BGR, or "
                    "--color RGB if this one was trained with red first"
                )
            try:
                fitted = self._mean_file.fitted(
                    channels, (crop, crop) if isinstance(crop, int) else crop, resize
                )
            except ImageSetError as error:
                raise UsageError(f"--mean: {error}") from None
            if fitted.ndim == 1:
                return tuple(float(value) for value in fitted), b""
            return (0.0,) * channels, fitted.astype("<f4").tobytes()
        if self.mean is None and default.mean_image:
            if crop != default.crop:
                raise UsageError(
                    f"the network comes with a mean image of {size_words(default.crop)} pixels; leave --crop out"
                )
            return default.mean, default.mean_image
        given = None if isinstance(self.mean, Path) else self.mean
        return _for_channels(given or _kept(default.mean, channels), channels, "--mean"), b""


def _kept(values: tuple[float, ...], channels: int) -> tuple[float, ...] | None:
    """The default's ``values``, unless they are for another number of channels."""
    return values if len(values) == channels else None


def _for_channels(values: tuple[float, ...] | None, channels: int, option: str) -> tuple[float, ...] | None:
    """``values`` for ``channels`` channels; a single one is for all of them."""
    if values is None or len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    raise UsageError(
        f"{option} has {len(values)} values, the network takes {channels} channels; pass as many"
    )


def _check_size(size: Size | None, option: str, least: int, example: str) -> None:
    sides = () if size is None else (size,) if isinstance(size, int) else size
    lowest = 1 if isinstance(size, tuple) else least
    if not all(lowest <= side <= MAX_SIDE for side in sides):
        raise UsageError(
            f"{option} {size_words(size)} is not between {lowest} and {MAX_SIDE}; it is a side in pixels, such as "
            f"{example}"
        )


def _check_range(mean: tuple[float, ...] | None, std: tuple[float, ...] | None, color: Color | None) -> None:
    """Refuse values in 0 to 255, and print them as values of 0 to 1, ready to paste."""
    wide_mean = mean is not None and not all(0 <= value <= 1 for value in mean)
    wide_std = std is not None and not all(0 < value <= 1 for value in std)
    if not wide_mean and not wide_std:
        return
    said = " and ".join(
        f"{name} {','.join(f'{value:.9g}' for value in values)}"
        for name, values, wide in (("--mean", mean, wide_mean), ("--std", std, wide_std))
        if wide and values is not None
    )
    given = (mean or ()) + (std or ())
    if not all(0 <= value <= 255 for value in given) or 0 in (std or ()):
        raise UsageError(
            f"{said}: values must lie between 0 and 1, with std above 0; such as --mean 0.485 --std 0.229"
        )
    paste = []
    if mean is not None:
        paste.append("--mean " + _divided(mean, divide=wide_mean))
    if std is not None:
        # Caffe subtracts means of 0 to 255 and divides by nothing
        paste.append("--std " + _divided(std, divide=wide_std or set(std) == {1.0}))
    hint = ""
    if mean is not None and color != "BGR" and _is_caffes(mean):
        paste.append("--color BGR")
        hint = ", and blue comes first, as in Caffe"
    if mean is not None and std is None:
        scale = _divided((1.0,) * len(mean), divide=True)
        hint += f"; where pixels of 0 to 255 are divided by nothing, --std is {scale}"
    raise UsageError(
        f"{said} counts in pixel values of 0 to 255, and values of 0 to 1 are needed; pass {' '.join(paste)} "
        f"(divided by 255{hint})"
    )


def _is_caffes(mean: tuple[float, ...]) -> bool:
    """Whether ``mean`` is that of ImageNet in the order blue, green, red."""
    return len(mean) == 3 and all(
        abs(value - usual) < 2 for value, usual in zip(mean, _CAFFE_BGR, strict=True)
    )


def _divided(values: tuple[float, ...], *, divide: bool) -> str:
    return ",".join(f"{value / 255 if divide else value:.6g}" for value in values)

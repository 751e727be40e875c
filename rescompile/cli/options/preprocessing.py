"""Changes to the network's own preprocessing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rescompile.cli.options.shared import option
from rescompile.errors import UsageError

if TYPE_CHECKING:
    from rescompile.sources.preprocess_options import PreprocessOptions

_SIDE = re.compile(r"-?[0-9]{1,9}")
_preprocessing = partial(option, "Preprocessing")


@dataclass(frozen=True)
class PreprocessingOptions:
    """Changes to the network's own preprocessing."""

    resize: Annotated[
        str | None,
        _preprocessing(
            "Resize the shorter side to N pixels, or to HxW without keeping the ratio; 0: do not resize."
        ),
    ] = None
    crop: Annotated[
        str | None,
        _preprocessing(
            "Side N or size HxW of the centre crop in pixels, which is the network's input.",
            "--crop",
            "--size",
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        _preprocessing("Resize the shorter side to the crop divided by this, as timm does: 0.95."),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic"] | None, _preprocessing("Filter for resizing.")
    ] = None
    mean: Annotated[
        str | None,
        _preprocessing(
            "Mean of each channel in [0, 1], such as 0.485,0.456,0.406; or a mean image of pixel values of 0 to 255 "
            "(.npy, .npz, Caffe's binaryproto).",
            metavar="NUMBERS|FILE",
        ),
    ] = None
    std: Annotated[
        str | None,
        _preprocessing(
            "Standard deviation of each channel in [0, 1], such as 0.229,0.224,0.225. Default with a mean image: 1.",
            metavar="NUMBERS",
        ),
    ] = None
    color: Annotated[
        Literal["RGB", "BGR", "GRAY", "RGBA"] | None, _preprocessing("Channels that the network expects.")
    ] = None

    def config(self) -> PreprocessOptions:
        """These options as configuration."""
        from rescompile.sources.preprocess_options import PreprocessOptions

        return PreprocessOptions(
            resize=parse_size(self.resize, "--resize"),
            crop=parse_size(self.crop, "--crop"),
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            mean=_mean(self.mean),
            std=_numbers(self.std, "--std"),
            color=self.color,
        )


def parse_size(text: str | None, option: str) -> int | tuple[int, int] | None:
    """The side, or height and width, that ``option`` names; raises UsageError where ``text`` is neither."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(_SIDE.fullmatch(side) for side in sides):
        raise UsageError(f"{option} {text} is not understood; write a side (224) or height x width (256x128)")
    height, width = int(sides[0]), int(sides[-1])
    # a square crop is one number, but a resize to HxW does not keep the ratio and a resize to one number does
    return height if len(sides) == 1 or (height == width and option == "--crop") else (height, width)


def _mean(text: str | None) -> tuple[float, ...] | Path | None:
    if text is None or all(_is_number(part) for part in text.split(",")):
        return _numbers(text, "--mean")
    path = Path(text)
    # what names no file and does not end like one is rather a slip in the numbers
    if not (path.suffix[1:].isalpha() or path.is_file()):
        return _numbers(text, "--mean")
    return path


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(map(_is_number, parts)):
        raise UsageError(
            f"{option} {text} is not understood; write three numbers, such as 0.485,0.456,0.406, or one for all"
        )
    return tuple(map(float, parts))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

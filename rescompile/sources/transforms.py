"""Preprocessing as timm, torchvision and Hugging Face describe it, in our own form.

The descriptions are read by their fields, so none of these packages is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from calibration.preprocess import Color, Preprocess, Size
from rescompile.errors import UsageError

_COLOR_OF: dict[int, Color] = {1: "GRAY", 3: "RGB", 4: "RGBA"}
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""PIL's numbers, which Hugging Face writes down."""
_KEPT = {
    "ToTensor",
    "PILToTensor",
    "ConvertImageDtype",
    "ToImage",
    "ToDtype",
    "MaybeToTensor",
    "MaybePILToTensor",
}
"""Transforms between pixels and floats of 0 to 1."""


def timm_preprocess(described: object) -> Preprocess | None:
    """timm's evaluation preprocessing of a ``pretrained_cfg``; None where ours cannot express it.

    timm rounds the size before the crop down: a crop of 224 with a ``crop_pct`` of 0.95 is resized to 235.
    """
    cfg = _fields(described)
    channels, height, width = cfg["input_size"]
    crop_pct, mode = cfg.get("crop_pct") or 0.875, cfg.get("crop_mode") or "center"
    resize: Size = math.floor(height / crop_pct)
    if mode == "squash":
        resize = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        return None
    return _made(resize, (height, width), str(cfg.get("interpolation")), cfg["mean"], cfg["std"], channels)


def timm_notes(described: object) -> tuple[str, ...]:
    """A sentence where timm reports its accuracy at another size."""
    cfg = _fields(described)
    tested = cfg.get("test_input_size")
    if not tested or tuple(tested) == tuple(cfg["input_size"]):
        return ()
    crop_pct = cfg.get("test_crop_pct") or cfg.get("crop_pct")
    return (
        f"timm reports this network's accuracy at {tested[1]} pixels: pass --crop {tested[1]} --crop-pct {crop_pct} to "
        "build that",
    )


def _fields(described: object) -> dict[str, Any]:
    """A ``pretrained_cfg`` in any of its forms as a dictionary."""
    if isinstance(described, Mapping):
        return dict(described)
    to_dict = getattr(described, "to_dict", None)
    return dict(to_dict()) if to_dict else dict(vars(described))


def transform_preprocess(transform: object) -> Preprocess:
    """A torchvision transform: the preset of published weights, or Resize, CenterCrop, ToTensor and Normalize.

    Raises:
        UsageError: it has a step that does something else.
    """
    if hasattr(transform, "resize_size") and hasattr(transform, "crop_size"):
        return _made(
            _one_or_two(transform.resize_size), _one_or_two(transform.crop_size), _filter(transform),
            list(transform.mean), list(transform.std), len(transform.mean),  # type: ignore[attr-defined]
        )  # fmt: skip
    steps = list(getattr(transform, "transforms", [transform]))
    found: dict[str, Any] = {}
    for step in steps:
        kind = type(step).__name__
        if kind in ("Resize", "CenterCrop", "Normalize") and kind not in found and "Normalize" not in found:
            found[kind] = step
        elif kind not in _KEPT:
            raise UsageError(
                f"the step {kind} of the transform is not known; pass preprocess= with Resize, CenterCrop, ToTensor "
                "and Normalize, or a calibration.preprocess.Preprocess"
            )
    if "Normalize" not in found or not {"Resize", "CenterCrop"} & set(found):
        raise UsageError(
            "the transform needs Normalize, and Resize or CenterCrop, to be a network's preprocessing"
        )
    normalize, resize, crop = (found.get(kind) for kind in ("Normalize", "Resize", "CenterCrop"))
    before = _one_or_two(resize.size) if resize is not None else None
    after = _one_or_two(crop.size) if crop is not None else before
    if crop is None and isinstance(before, int):
        raise UsageError(
            "the transform resizes the shorter side alone; add a CenterCrop, which fixes the input's size"
        )
    assert normalize is not None
    assert after is not None
    mean, std = list(normalize.mean), list(normalize.std)
    return _made(before, after, _filter(resize) if resize is not None else "bilinear", mean, std, len(mean))


def hf_preprocess(described: Mapping[str, Any]) -> Preprocess | None:
    """Hugging Face's ``preprocessor_config.json``; None where ours cannot express it."""
    size, crop = described.get("size"), described.get("crop_size")
    kind = str(described.get("image_processor_type") or described.get("feature_extractor_type") or "")
    if isinstance(size, Mapping) and "shortest_edge" in size:
        before: Size | None = int(size["shortest_edge"])
    elif isinstance(size, Mapping) and "height" in size:
        before = (int(size["height"]), int(size["width"]))
    else:
        before = size if isinstance(size, int) else None
    if kind.startswith("ConvNext") and isinstance(before, int):
        # below 384 pixels this processor resizes to size / crop_pct and crops; above it changes the ratio
        side = before
        before = int(side / (described.get("crop_pct") or 224 / 256)) if side < 384 else (side, side)
        after: Size = side
    elif described.get("do_center_crop") and crop is not None:
        after = (int(crop["height"]), int(crop["width"])) if isinstance(crop, Mapping) else int(crop)
    elif isinstance(before, tuple):
        after = before
    elif isinstance(before, int) and "shortest_edge" not in (size if isinstance(size, Mapping) else {}):
        before = after = (before, before)
    else:
        return None
    if not described.get("do_resize", True):
        before = None
    if not math.isclose(float(described.get("rescale_factor", 1 / 255)), 1 / 255, rel_tol=1e-3):
        return None
    normalized = described.get("do_normalize", True) and described.get("image_mean")
    mean = list(described["image_mean"]) if normalized else [0.0] * 3
    std = list(described["image_std"]) if normalized else [1.0] * 3
    kernel = _RESAMPLING.get(int(described.get("resample", 2)), "")
    return _made(before, after, kernel, mean, std, len(mean))


def _made(
    resize: Size | None, crop: Size, kernel: str, mean: Sequence[float], std: Sequence[float], channels: int
) -> Preprocess:
    if kernel not in ("nearest", "bilinear", "bicubic"):
        raise UsageError(
            f"images are resized by {kernel}, which is not supported; pass --interpolation bicubic"
        )
    if isinstance(crop, tuple) and crop[0] == crop[1]:
        crop = crop[0]
    values = [tuple(float(value) for value in values) for values in (mean, std)]
    mean, std = (each * channels if len(each) == 1 else each for each in values)
    try:
        return Preprocess(
            resize=resize, crop=crop, interpolation=kernel, mean=mean, std=std, color=_COLOR_OF[channels]  # type: ignore[arg-type]
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        raise UsageError(f"the network's preprocessing does not fit together: {error}") from None


def _one_or_two(size: Any) -> Size:
    if isinstance(size, int):
        return size
    sides = [int(side) for side in size]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _filter(transform: object) -> str:
    kernel = getattr(transform, "interpolation", "bilinear")
    return str(getattr(kernel, "value", kernel)).lower()

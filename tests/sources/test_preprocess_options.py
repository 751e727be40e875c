"""The user's changes to the preprocessing: what they make of a network's own, and what is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from calibration.preprocess import CIFAR, IMAGENET, MAX_SIDE, Preprocess
from rescompile.errors import UsageError
from rescompile.sources.preprocess_options import PreprocessOptions


def test_nothing_asked_keeps_the_models_preprocessing() -> None:
    assert PreprocessOptions().apply(IMAGENET) == IMAGENET
    assert PreprocessOptions().apply(CIFAR) == CIFAR


@pytest.mark.parametrize(
    ("options", "default", "resize", "crop"),
    [
        ({"crop": 112}, IMAGENET, 128, 112),
        ({"crop": 64}, CIFAR, 64, 64),
        ({"crop": (256, 128)}, IMAGENET, (256, 128), (256, 128)),
        ({"resize": (256, 256)}, IMAGENET, (256, 256), 224),
        ({"crop_pct": 0.95}, IMAGENET, 235, 224),
        ({"crop_pct": 0.875, "crop": 256}, IMAGENET, 292, 256),
        ({"crop_pct": 1.0}, CIFAR, 32, 32),
        ({"crop": 288, "resize": 288}, IMAGENET, 288, 288),
        ({"resize": 0}, IMAGENET, None, 224),
        ({"resize": 40}, CIFAR, 40, 32),
        ({"crop": MAX_SIDE}, IMAGENET, MAX_SIDE, MAX_SIDE),
    ],
)
def test_sizes_change_together(
    options: dict[str, Any], default: Preprocess, resize: object, crop: object
) -> None:
    made = PreprocessOptions(**options).apply(default)
    assert (made.resize, made.crop) == (resize, crop)
    # what a manifest says is read back under the same bounds
    assert msgspec.json.decode(msgspec.json.encode(made), type=Preprocess) == made


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": 100}, "resize 100 is smaller than crop 224"),
        ({"resize": (300, 200)}, "resize 300x200 is smaller than crop 224"),
    ],
)
def test_preprocessing_that_does_not_fit_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"do not fit together: .*{words}"):
        PreprocessOptions(**options).apply(IMAGENET)


def test_each_step_of_preprocessing_can_be_changed() -> None:
    asked = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 0.5, 0.25), "color": "BGR", "interpolation": "bicubic"}
    made = PreprocessOptions(**asked).apply(IMAGENET)  # type: ignore[arg-type]
    assert {name: getattr(made, name) for name in asked} == asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": 0}, "--crop 0 is not between 1 and"),
        ({"crop": -5}, "--crop -5 is not between"),
        ({"crop": MAX_SIDE + 1}, "--crop 8193 is not between"),
        ({"resize": -1}, "--resize -1 is not between 0 and"),
        ({"resize": MAX_SIDE + 1}, "--resize 8193 is not between"),
        ({"crop": (256, 0)}, "--crop 256x0 is not between 1 and"),
        ({"resize": (0, 256)}, "--resize 0x256 is not between 1 and"),
        ({"crop_pct": 0.0}, "--crop-pct 0 is not between 0 and 1"),
        ({"crop_pct": 87.5}, "--crop-pct 87.5 is not between 0 and 1"),
        ({"crop_pct": 0.9, "resize": 256}, "pass --resize instead, or alone"),
        ({"mean": (0.1,) * 5}, "--mean has 5 values; pass one for each channel"),
        ({"mean": (-0.5, 0.5, 0.5)}, "--mean -0.5,0.5,0.5: values must lie between 0 and 1"),
        ({"mean": (float("inf"), 0.0, 0.0)}, "values must lie between 0 and 1"),
        ({"std": (0.0, 1.0, 1.0)}, "--std 0,1,1: values must lie between 0 and 1, with std above 0"),
        ({"std": (1.0, 1.0, float("nan"))}, "values must lie between 0 and 1"),
        ({"std": (1000.0, 1.0, 1.0)}, "values must lie between 0 and 1"),
        ({"mean": Path("no/mean.npy")}, "--mean: no/mean.npy does not exist"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_when_given(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PreprocessOptions(**options)


@pytest.mark.parametrize(
    ("options", "paste"),
    [
        (
            {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},
            "pass --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \\(divided by 255\\)",
        ),
        (
            {"mean": (103.939, 116.779, 123.68), "std": (1.0, 1.0, 1.0)},
            "pass --mean 0.407604,0.457957,0.48502 --std 0.00392157,0.00392157,0.00392157 --color BGR",
        ),
        (
            {"mean": (104.0, 117.0, 123.0), "std": (1.0, 1.0, 1.0), "color": "BGR"},
            "pass --mean 0.407843,0.458824,0.482353 --std 0.00392157,0.00392157,0.00392157 \\(divided",
        ),
        ({"mean": (127.5,), "std": (127.5,)}, "pass --mean 0.5 --std 0.5 "),
        (
            {"mean": (0.0, 0.0, 0.0), "std": (255.0,) * 3},
            "--std 255,255,255 counts .* pass --mean 0,0,0 --std 1,1,1 ",
        ),
        ({"mean": (127.5,), "std": (0.5,)}, "--mean 127.5 counts .* pass --mean 0.5 --std 0.5 "),
        ({"mean": (110.0, 120.0, 130.0)}, "pass --mean 0.431373,.* divided by nothing, --std is 0.00392157,"),
    ],
)
def test_values_in_pixels_are_printed_as_values_of_0_to_1(options: dict[str, Any], paste: str) -> None:
    with pytest.raises(UsageError, match=paste):
        PreprocessOptions(**options)


def test_what_is_printed_can_be_pasted() -> None:
    made = PreprocessOptions(mean=(0.407604, 0.457957, 0.48502), std=(0.00392157,) * 3, color="BGR").apply()
    assert np.allclose(np.array(made.mean) * 255, (103.939, 116.779, 123.68), atol=1e-3)


def test_networks_of_other_channels() -> None:
    grey = PreprocessOptions(mean=(0.1307,), std=(0.3081,)).apply(CIFAR, channels=1)
    assert (grey.color, grey.mean, grey.std) == ("GRAY", (0.1307,), (0.3081,))
    opaque = PreprocessOptions(color="RGBA", mean=(0.5,), std=(0.5,)).apply(IMAGENET, channels=4)
    assert (opaque.color, opaque.mean) == ("RGBA", (0.5,) * 4)
    for options, channels, words in (
        ({}, 1, "nothing says how the images of this network, of 1 channel, are normalized"),
        ({}, 4, "nothing says what the fourth is; pass --color RGBA"),
        ({}, 2, "takes 2 channels; images can have 1, 3 or 4"),
        ({"color": "RGB"}, 1, "--color RGB makes 3 channels, the network takes 1; pass GRAY"),
        ({"color": "GRAY"}, 3, "--color GRAY makes 1 channels, the network takes 3; pass RGB or BGR"),
        ({"mean": (0.5,) * 4, "std": (0.5,)}, 3, "--mean has 4 values, the network takes 3 channels"),
    ):
        with pytest.raises(UsageError, match=words):
            PreprocessOptions(**options).apply(IMAGENET, channels=channels)  # type: ignore[arg-type]


def test_a_mean_image_comes_with_a_std_of_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    np.save(tmp_path / "mean.npy", values)
    made = PreprocessOptions(mean=tmp_path / "mean.npy").apply(CIFAR)
    assert (made.mean, made.std) == ((0.0,) * 3, (1.0,) * 3)
    assert np.array_equal(made.subtracted(), (values.transpose(2, 0, 1) / np.float64(255)).astype(np.float32))
    assert PreprocessOptions().apply(made) == made
    assert PreprocessOptions(mean=tmp_path / "mean.npy", std=(1 / 255,)).apply(CIFAR).std == (1 / 255,) * 3
    with pytest.raises(UsageError, match="comes with a mean image of 32 pixels; leave --crop out"):
        PreprocessOptions(crop=16).apply(made)
    with pytest.raises(UsageError, match=r"--mean: .* of 32x32 pixels, the network takes 224x224"):
        PreprocessOptions(mean=tmp_path / "mean.npy").apply(IMAGENET)


def test_the_order_of_a_mean_image_of_caffe_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "mean.binaryproto"
    numbers = b"".join(bytes([number << 3, size]) for number, size in enumerate((1, 3, 1, 1), 1))
    path.write_bytes(numbers + b"\x2a\x0c" + np.array([104, 117, 123], "<f4").tobytes())
    with pytest.raises(UsageError, match="pass --color BGR, or --color RGB"):
        PreprocessOptions(mean=path).apply()
    made = PreprocessOptions(mean=path, color="BGR", std=(1 / 255,)).apply()
    assert np.allclose(made.mean, np.array([104, 117, 123]) / 255)

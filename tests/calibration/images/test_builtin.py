from __future__ import annotations

import re
from importlib.resources import files

import msgspec
import numpy as np
import pytest
from PIL import Image

from calibration.errors import CalibrationError
from calibration.images import ImageSet, builtin
from calibration.images.builtin import COUNT, PHOTOGRAPHS, builtin_image_set, golden_images
from calibration.preprocess import CIFAR, IMAGENET, to_uint8

FOLDER = files("calibration") / "photographs"


def pixels(images: ImageSet, preprocess: object = CIFAR) -> np.ndarray:
    return np.concatenate([batch.images for batch in images.batches(preprocess, 5)])  # type: ignore[arg-type]


def test_every_photograph_is_listed_with_its_licence_and_small() -> None:
    stored = sorted(entry.name for entry in FOLDER.iterdir() if entry.name.endswith(".jpg"))
    assert stored == sorted(f"{name}.jpg" for name in PHOTOGRAPHS)
    listed = re.findall(
        r"^\| `(\w+\.jpg)` \|.*(?:CC0|public domain)", (FOLDER / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == stored
    sizes = [len((FOLDER / name).read_bytes()) for name in stored]
    assert max(sizes) <= 150_000
    assert sum(sizes) < 700_000


def test_photographs_are_large_enough_for_crops_at_224() -> None:
    for name in PHOTOGRAPHS:
        with Image.open(FOLDER / f"{name}.jpg") as image:
            assert min(image.size) >= 300


def test_set_has_the_interface_of_any_other() -> None:
    images = builtin_image_set()
    assert (len(images), images.source, images.labels) == (COUNT, "built-in photographs", None)
    assert len(set(images.images.names)) == COUNT
    batch = next(images.batches(IMAGENET, 8))
    assert (batch.images.shape, batch.images.dtype) == ((8, 224, 224, 3), np.uint8)
    assert batch.labels is None


def test_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    first, again, other = builtin_image_set(7, 1), builtin_image_set(7, 1), builtin_image_set(7, 2)
    assert np.array_equal(pixels(first), pixels(again))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not np.array_equal(pixels(first), pixels(other))
    assert (first.seed, other.seed) == (1, 2)


def test_longer_set_begins_with_the_shorter() -> None:
    assert np.array_equal(pixels(builtin_image_set(6)), pixels(builtin_image_set(13))[:6])


def test_all_photographs_take_part_and_no_two_images_are_alike() -> None:
    images = builtin_image_set(2 * len(PHOTOGRAPHS))
    assert {name.split()[0] for name in images.images.names} == set(PHOTOGRAPHS)
    found = pixels(images)
    assert len({image.tobytes() for image in found}) == len(found)


def test_crops_stay_inside_their_photograph_and_vary() -> None:
    crops = [builtin._draw(name, np.random.default_rng(seed)) for seed in range(40) for name in PHOTOGRAPHS]
    for crop in crops:
        width, height = builtin._photograph(crop.photograph).size
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= width + 1e-6
        assert 0 <= top < bottom <= height + 1e-6
        assert 0.1 <= (right - left) * (bottom - top) / (width * height) <= 1
        assert min(crop.brightness, crop.contrast, crop.saturation) >= 0.6
        assert max(crop.brightness, crop.contrast, crop.saturation) <= 1.4
    assert 0.4 < np.mean([crop.mirrored for crop in crops]) < 0.6


def test_mirroring_and_colour_order_are_applied() -> None:
    crop = builtin._draw("coffee", np.random.default_rng(0))
    plain = crop.__class__(**{**vars(crop), "mirrored": False}).pixels(IMAGENET)
    mirrored = crop.__class__(**{**vars(crop), "mirrored": True}).pixels(IMAGENET)
    assert np.abs(plain[:, ::-1].astype(int) - mirrored).max() <= 1
    swapped = crop.pixels(msgspec.structs.replace(IMAGENET, color="BGR"))
    assert np.array_equal(swapped[..., ::-1], crop.pixels(IMAGENET))


@pytest.mark.parametrize("count", [0, -3])
def test_empty_set_is_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match=f"{count} built-in images were requested: request at least 1"):
        builtin_image_set(count)


@pytest.mark.parametrize(
    "preprocess", [IMAGENET, CIFAR, msgspec.structs.replace(CIFAR, resize=None, crop=224)]
)
def test_golden_images_are_fixed_and_full_of_detail(preprocess: object) -> None:
    images = golden_images(preprocess, 4)  # type: ignore[arg-type]
    crop = preprocess.crop  # type: ignore[attr-defined]
    assert (images.shape, images.dtype) == ((4, crop, crop, 3), np.uint8)
    assert np.array_equal(images, golden_images(preprocess, 4))  # type: ignore[arg-type]
    assert images.reshape(4, -1).std(axis=1).min() > 20


def test_golden_images_at_imagenet_size_are_plain_centre_crops() -> None:
    with Image.open(FOLDER / f"{PHOTOGRAPHS[0]}.jpg") as image:
        assert np.array_equal(golden_images(IMAGENET, 1)[0], to_uint8(image, IMAGENET))


@pytest.mark.parametrize("count", [0, 7])
def test_golden_images_are_as_many_as_there_are_photographs(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 6 golden images"):
        golden_images(IMAGENET, count)

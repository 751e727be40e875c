from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import ImageSetError
from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize, to_rgb, to_uint8


def steps(**changes: object) -> Preprocess:
    return msgspec.structs.replace(IMAGENET, **changes)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "resized"),
    [((500, 331), (386, 256)), ((331, 500), (256, 386)), ((256, 300), (256, 300)), ((100, 100), (256, 256))],
)
def test_shorter_side_is_resized_and_the_longer_is_truncated(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    image = Image.fromarray(noise(size[1], size[0]))
    left, top = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    expected = image.resize(resized, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    assert np.array_equal(to_uint8(image, IMAGENET), np.asarray(expected))


@pytest.mark.parametrize(("excess", "offset"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_centre_crop_rounds_half_offsets_to_even(excess: int, offset: int) -> None:
    pixels = noise(32, 32 + excess)
    assert np.array_equal(to_uint8(pixels, CIFAR), pixels[:, offset : offset + 32])


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
def test_interpolation_is_the_one_asked_for(name: str) -> None:
    image = Image.fromarray(noise(50, 40))
    expected = image.resize((24, 30), Image.Resampling[name.upper()]).crop((0, 3, 24, 27))
    assert np.array_equal(
        to_uint8(image, steps(resize=24, crop=24, interpolation=name)), np.asarray(expected)
    )


def test_bgr_reverses_the_channels() -> None:
    pixels = noise(32, 32)
    found = to_uint8(pixels, msgspec.structs.replace(CIFAR, color="BGR"))
    assert np.array_equal(found, pixels[..., ::-1])
    assert found.flags.c_contiguous


def test_image_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(
        ImageSetError, match="the image is 300x31, smaller than the 32x32 crop: use larger images"
    ):
        to_uint8(noise(31, 300), steps(resize=None, crop=32))


def test_image_of_one_row_is_refused_before_it_is_stretched_over_all_memory() -> None:
    with pytest.raises(ImageSetError, match="9000x1, too elongated to be resized: crop it"):
        to_uint8(noise(1, 9000), steps(resize=256))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    image = Image.fromarray(noise(2, 3))
    image.getexif()[0x0112] = orientation
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }
    assert np.array_equal(np.asarray(to_rgb(image)), turns[orientation](noise(2, 3)))


def one_pixel(image: Image.Image) -> list[int]:
    pixel = to_uint8(image, msgspec.structs.replace(CIFAR, resize=None, crop=1))
    return list(pixel[0, 0])


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, [255, 255, 255]),
        ("L", 77, [77, 77, 77]),
        ("LA", (77, 255), [77, 77, 77]),
        ("LA", (77, 0), [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("I", 65535, [255, 255, 255]),
        ("I", 32768, [128, 128, 128]),
        ("I", 200, [1, 1, 1]),
        ("I;16", 257, [1, 1, 1]),
        ("I;16B", 65535, [255, 255, 255]),
    ],
)
def test_every_mode_becomes_rgb(mode: str, color: object, expected: list[int]) -> None:
    assert one_pixel(Image.new(mode, (1, 1), color)) == expected  # type: ignore[arg-type]


def test_palette_with_and_without_transparency_becomes_rgb() -> None:
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert one_pixel(image) == [200, 100, 50]
    image.info["transparency"] = bytes([255, 0])
    assert one_pixel(image) == [255, 255, 255]


def test_rgb_with_a_transparent_colour_is_laid_over_white() -> None:
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    image.info["transparency"] = (1, 2, 3)
    assert one_pixel(image) == [255, 255, 255]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("F", (40, 40), 0.5), "floating-point pixels"),
        (Image.new("I", (40, 40), 70_000), "more than 16 bits"),
        (np.zeros((40, 40, 3), np.float32), "array float32"),
        (np.zeros((3, 40, 40), np.uint8), r"array uint8 \[3, 40, 40\]: pass uint8 \[H, W, 3\]"),
        (np.zeros((1, 40, 40, 3), np.uint8), r"array uint8 \[1, 40, 40, 3\]"),
    ],
)
def test_pixels_without_8_bit_meaning_are_refused(image: object, words: str) -> None:
    with pytest.raises(ImageSetError, match=words):
        to_uint8(image, CIFAR)  # type: ignore[arg-type]


def test_grey_arrays_become_rgb() -> None:
    assert np.array_equal(to_uint8(np.full((32, 32), 9, np.uint8), CIFAR), np.full((32, 32, 3), 9))


def test_normalization_is_the_formula_in_fp32_channel_by_channel() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = normalize(images, IMAGENET)
    assert (found.dtype, found.shape) == (np.float32, (1, 3, 16, 16))
    for channel in range(3):
        x = np.arange(256, dtype=np.float32) / np.float32(255)
        expected = (x - np.float32(IMAGENET.mean[channel])) / np.float32(IMAGENET.std[channel])
        assert np.array_equal(found[0, channel].ravel(), expected)


def test_normalization_keeps_pixels_in_their_places() -> None:
    images = np.stack([noise(5, 5), noise(6, 5)[:5]])
    found = normalize(images, steps(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert np.array_equal(np.rint(found * 255).astype(np.uint8).transpose(0, 2, 3, 1), images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"std": (0.2, 0.0, 0.2)}, "std is .*must be positive"),
        ({"std": (0.2, float("nan"), 0.2)}, "std is"),
        ({"mean": (0.2, float("inf"), 0.2)}, "mean is .*finite"),
        ({"resize": 200}, "resize 200 is smaller than crop 224"),
    ],
)
def test_impossible_preprocessing_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        steps(**changes)


def test_impossible_preprocessing_is_refused_in_json_too() -> None:
    text = msgspec.json.encode(IMAGENET).replace(b'"resize":256', b'"resize":223')
    with pytest.raises(msgspec.ValidationError, match="resize 223 is smaller than crop 224"):
        msgspec.json.decode(text, type=Preprocess)


def whole(**changes: object) -> Preprocess:
    """Images as they are, normalized to x / 255."""
    plain: dict[str, object] = {"resize": None, "crop": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return msgspec.structs.replace(IMAGENET, **(plain | changes))


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (24, 30), (7, 90)])
def test_resizing_to_height_and_width_does_not_keep_the_ratio(size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(*size))
    expected = image.resize((30, 24), Image.Resampling.BILINEAR).crop((5, 2, 25, 22))
    assert np.array_equal(to_uint8(image, steps(resize=(24, 30), crop=20)), np.asarray(expected))


def test_crops_need_not_be_square() -> None:
    found = to_uint8(noise(20, 13), steps(resize=None, crop=(16, 9)))
    assert np.array_equal(found, noise(20, 13)[2:18, 2:11])
    with pytest.raises(ImageSetError, match="the image is 8x40, smaller than the 9x16 crop"):
        to_uint8(noise(40, 8), steps(resize=None, crop=(16, 9)))


def test_grey_networks_see_luma_before_resizing() -> None:
    image = Image.fromarray(noise(50, 40))
    grey = steps(resize=24, crop=24, color="GRAY", mean=(0.5,), std=(0.25,))
    expected = image.convert("L").resize((24, 30), Image.Resampling.BILINEAR).crop((0, 3, 24, 27))
    found = to_uint8(image, grey)
    assert np.array_equal(found[..., 0], np.asarray(expected))
    assert normalize(found[None], grey).shape == (1, 1, 24, 24)
    grey_pixels = noise(30, 30)[..., :1]
    assert np.array_equal(
        to_uint8(grey_pixels, steps(resize=None, crop=30, color="GRAY", mean=(0.5,), std=(0.5,))), grey_pixels
    )


def test_transparency_is_kept_where_the_network_takes_it() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (30, 40, 4), np.uint8)
    image = Image.fromarray(pixels)
    found = to_uint8(image, steps(resize=20, crop=20, color="RGBA", mean=(0.5,) * 4, std=(0.5,) * 4))
    assert np.array_equal(
        found, np.asarray(image.resize((26, 20), Image.Resampling.BILINEAR).crop((3, 0, 23, 20)))
    )
    opaque = to_uint8(
        noise(20, 20), steps(resize=None, crop=20, color="RGBA", mean=(0.5,) * 4, std=(0.5,) * 4)
    )
    assert (opaque[..., 3] == 255).all()
    assert np.array_equal(opaque[..., :3], noise(20, 20))


def test_a_mean_image_is_subtracted_before_the_division() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (3, 8, 8)).astype(np.float32)
    made = whole(std=(0.5, 0.25, 1.0), mean_image=image.tobytes())
    pixels = noise(8, 8)
    divisor = np.array([0.5, 0.25, 1.0], np.float32)[:, None, None]
    expected = (pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - image) / divisor
    assert np.array_equal(normalize(pixels[None], made)[0], expected)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Preprocess) == made


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (0.5,)}, "mean has 1 and std 3 values: RGB has 3"),
        ({"color": "GRAY"}, "mean has 3 and std 3 values: GRAY has 1"),
        ({"resize": (300, 200)}, "resize 300x200 is smaller than crop 224"),
        ({"resize": 100, "crop": (128, 256)}, "resize 100 is smaller than crop 128x256"),
        ({"mean_image": bytes(12)}, "mean_image must have 3 x 224 x 224 values"),
        ({"crop": 8, "mean_image": bytes(3 * 8 * 8 * 4)}, "and mean be zero"),
        ({"crop": 8, "mean": (0.0,) * 3, "mean_image": b"\xff" * 768}, "mean_image must have finite values"),
    ],
)
def test_steps_that_do_not_fit_each_other_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        steps(**changes)


def test_without_new_fields_the_text_is_that_of_older_versions() -> None:
    """Tables are sealed by the digest of their text, which must not change."""
    assert msgspec.json.encode(IMAGENET) == (
        b'{"resize":256,"crop":224,"interpolation":"bilinear","mean":[0.485,0.456,0.406],'
        b'"std":[0.229,0.224,0.225],"color":"RGB"}'
    )


def test_photographs_are_resized_for_cifar_networks_and_their_own_images_are_not() -> None:
    assert np.array_equal(to_uint8(noise(32, 32), CIFAR), noise(32, 32))
    photograph = Image.fromarray(noise(90, 60))
    expected = photograph.resize((32, 48), Image.Resampling.BILINEAR).crop((0, 8, 32, 40))
    assert np.array_equal(to_uint8(photograph, CIFAR), np.asarray(expected))


def test_steps_read_as_one_line() -> None:
    assert str(IMAGENET) == (
        "resize 256 bilinear, crop 224, RGB, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]"
    )
    assert str(whole(mean_image=bytes(768))) == "crop 8, RGB, mean image, std [1.0, 1.0, 1.0]"


SMALL = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(SMALL, SMALL),
    resize=st.one_of(st.integers(16, 40), st.tuples(st.integers(16, 40), st.integers(16, 40))),
    crop=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    name=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_every_geometry_is_torchvisions(
    size: tuple[int, int], resize: int | tuple[int, int], crop: tuple[int, int], name: str
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    made = steps(resize=resize, crop=crop, interpolation=name)
    image = Image.fromarray(noise(*size))
    theirs = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(name)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(made.mean, made.std),
        ]
    )
    expected = theirs(image).numpy()
    assert np.abs(normalize(to_uint8(image, made)[None], made)[0] - expected).max() < 1e-6

"""Mean images of other tools, fitted to the network's input."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.mean_image import read_mean

Array = NDArray[np.float32]


def mean(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


def varint(value: int) -> bytes:
    some = bytearray()
    while value > 0x7F:
        some.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*some, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def old_blob(values: Array) -> bytes:
    """A BlobProto as Caffe's compute_image_mean writes it: four numbers, and unpacked floats."""
    sizes = b"".join(varint(number << 3) + varint(size) for number, size in enumerate((1, *values.shape), 1))
    return sizes + b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in values.ravel())


def new_blob(values: Array) -> bytes:
    """A BlobProto with a shape and packed floats."""
    shape = field(1, b"".join(map(varint, values.shape)))
    return field(5, values.astype("<f4").tobytes()) + field(7, shape)


def expected(values: Array) -> Array:
    return (values.astype(np.float64) / 255).astype(np.float32)


@pytest.mark.parametrize("blob", [old_blob, new_blob])
def test_a_blob_of_caffe_is_read(tmp_path: Path, blob: object) -> None:
    (tmp_path / "mean.binaryproto").write_bytes(blob(mean(3, 5, 4)))  # type: ignore[operator]
    found = read_mean(tmp_path / "mean.binaryproto")
    assert found.from_caffe
    np.testing.assert_array_equal(found.fitted(3, (5, 4), None), expected(mean(3, 5, 4)))


@pytest.mark.parametrize("planar", [True, False])
def test_numpy_arrays_of_both_layouts_are_read(tmp_path: Path, planar: bool) -> None:
    values = mean(3, 6, 7)
    np.save(tmp_path / "mean.npy", values if planar else values.transpose(1, 2, 0))
    np.savez(tmp_path / "mean.npz", values if planar else values.transpose(1, 2, 0))
    for name in ("mean.npy", "mean.npz"):
        found = read_mean(tmp_path / name).fitted(3, (6, 7), 9)
        np.testing.assert_array_equal(found, expected(values))


@pytest.mark.parametrize("resize", [9, (9, 9)])
def test_a_mean_of_the_size_before_the_crop_is_cropped_like_the_photograph(
    tmp_path: Path, resize: int | tuple[int, int]
) -> None:
    np.save(tmp_path / "mean.npy", mean(3, 9, 9))
    found = read_mean(tmp_path / "mean.npy").fitted(3, (6, 6), resize)
    np.testing.assert_array_equal(found, expected(mean(3, 9, 9)[:, 2:8, 2:8]))  # 1.5 rounds to the even 2


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_one_value_for_each_channel_is_a_plain_mean(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "mean.npy", mean(*shape))
    np.testing.assert_array_equal(read_mean(tmp_path / "mean.npy").fitted(3, (8, 8), 8), expected(mean(3)))


def test_a_plane_is_the_mean_of_a_grey_network_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", mean(8, 8))
    found = read_mean(tmp_path / "mean.npy")
    np.testing.assert_array_equal(found.fitted(1, (8, 8), 8), expected(mean(8, 8))[None])
    with pytest.raises(ImageSetError, match=r"shape \[8, 8\], the network takes 3 channels of 8x8 pixels"):
        found.fitted(3, (8, 8), 8)


def test_a_mean_of_another_size_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", mean(3, 9, 9))
    with pytest.raises(ImageSetError, match="of 9x9 pixels, the network takes 8x8: pass one of that size"):
        read_mean(tmp_path / "mean.npy").fitted(3, (8, 8), 10)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (mean(3, 4, 4) / 255, "the mean of pixels divided by 255: multiply it by 255"),
        (mean(3, 4, 4) - 200, "values outside of 0 to 255"),
        (np.full((3, 4, 4), np.nan), "values outside of 0 to 255"),
        (np.full((3, 4, 4), "a"), "which is not a mean image"),
        (np.zeros((0, 3)), "which is not a mean image"),
        (np.array(4.0), "which is not a mean image"),
    ],
)
def test_values_that_are_no_mean_of_pixels_are_refused(tmp_path: Path, array: Array, words: str) -> None:
    np.save(tmp_path / "mean.npy", array)
    with pytest.raises(ImageSetError, match=words):
        read_mean(tmp_path / "mean.npy")


@pytest.mark.parametrize(
    "content", [b"", b"no mean at all", b"\x93NUMPY\x01", b"PK\x03\x04 cut", b"\x2a\xff\xff"]
)
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mean").write_bytes(content)
    with pytest.raises(ImageSetError, match=r"cannot be read as a mean image \(.+\): pass a .npy"):
        read_mean(tmp_path / "mean")


def test_missing_files_and_archives_of_many_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="does not exist"):
        read_mean(tmp_path / "mean.npy")
    np.savez(tmp_path / "mean.npz", a=mean(3), b=mean(3))
    with pytest.raises(ImageSetError, match="holds 2 arrays, none of them called mean"):
        read_mean(tmp_path / "mean.npz")


def test_every_beginning_of_a_blob_is_refused_or_read(tmp_path: Path) -> None:
    whole = old_blob(mean(1, 2, 2))
    for end in range(len(whole)):
        (tmp_path / "mean").write_bytes(whole[:end])
        with pytest.raises(ImageSetError):
            read_mean(tmp_path / "mean")

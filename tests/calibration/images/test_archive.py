from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.preprocess import CIFAR

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 32, 36, 3), np.uint8)
LABELS = np.arange(9, dtype=np.int32)


def archive(path: Path, *, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def pixels(images: ImageSet) -> np.ndarray:
    return np.concatenate([batch.images for batch in images.batches(CIFAR, 2)])


@pytest.mark.parametrize("compressed", [False, True])
def test_images_and_labels_are_read_in_order(tmp_path: Path, compressed: bool) -> None:
    images = open_image_set(archive(tmp_path / "x.npz", compressed=compressed, images=IMAGES, labels=LABELS))
    assert (images.source, len(images), images.class_names) == ("x.npz", 9, None)
    assert images.labels is not None
    assert (images.labels.dtype, images.labels.tolist()) == (np.int64, list(range(9)))
    assert np.array_equal(pixels(images), IMAGES[:, :, 2:34])


def test_selection_skips_what_lies_between(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    images = open_image_set(path, limit=3, seed=1)
    assert images.labels is not None
    assert np.array_equal(pixels(images), IMAGES[images.labels][:, :, 2:34])
    assert images.images.names == tuple(f"images[{index}]" for index in images.labels)
    assert len(images.fingerprint) == 64 != open_image_set(path).fingerprint


def test_fingerprint_does_not_depend_on_compression(tmp_path: Path) -> None:
    plain = archive(tmp_path / "a.npz", images=IMAGES)
    small = archive(tmp_path / "b.npz", compressed=True, images=IMAGES, labels=LABELS)
    fingerprint = open_image_set(plain).fingerprint
    assert open_image_set(small).fingerprint == fingerprint
    read = open_image_set(small)
    assert np.array_equal(pixels(read), IMAGES[:, :, 2:34])
    small.unlink()
    assert read.fingerprint == fingerprint, "images that were read are not read again"


def test_labels_are_optional_unless_needed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=IMAGES)
    assert open_image_set(path).labels is None
    with pytest.raises(ImageSetError, match="has no labels, which are needed here"):
        open_image_set(path, need_labels=True)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": IMAGES}, "has no array 'images': save it with numpy.savez"),
        (
            {"images": IMAGES.astype(np.float32)},
            r"images are float32 \[9, 32, 36, 3\]: save them as contiguous uint8",
        ),
        ({"images": IMAGES[..., 0]}, r"images are uint8 \[9, 32, 36\]"),
        ({"images": IMAGES.transpose(0, 3, 1, 2).copy()}, r"images are uint8 \[9, 3, 32, 36\]"),
        ({"images": IMAGES[:, :0]}, r"images are uint8 \[9, 0, 36, 3\]"),
        ({"images": np.asfortranarray(IMAGES)}, "in Fortran order"),
        ({"images": IMAGES[:0]}, "holds no images: its array 'images' is empty"),
        ({"images": np.array([1, "a"], object)}, r"images are object \[2\]"),
        (
            {"images": IMAGES, "labels": LABELS[:8]},
            r"labels are int32 \[8\]: save one integer for each of the 9",
        ),
        ({"images": IMAGES, "labels": LABELS / 2}, r"labels are float64 \[9\]"),
        (
            {"images": IMAGES, "labels": LABELS - 1},
            r"labels lie in -1\.\.7: save class indices counted from 0",
        ),
        ({"images": IMAGES, "labels": np.full(9, 2**64 - 1, np.uint64)}, "labels lie in"),
        (
            {"images": IMAGES, "labels": np.array([{}] * 9, object)},
            "labels are object",
        ),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageSetError, match=words):
        open_image_set(archive(tmp_path / "x.npz", **arrays))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("something in the archive was unpickled",))


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(Trap())])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ImageSetError, match=r"is not an .npz archive"):
        open_image_set(tmp_path / "x.npz")


@pytest.mark.parametrize("member", ["images", "labels"])
def test_nothing_is_unpickled(tmp_path: Path, member: str) -> None:
    path = archive(
        tmp_path / "x.npz", **{"images": IMAGES, "labels": LABELS, member: np.array([Trap()] * 9, object)}
    )
    with pytest.raises(ImageSetError, match=member):
        open_image_set(path)


def rewritten(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "content", [b"", b"not npy", b"\x93NUMPY\x09\x00abc", b"\x93NUMPY\x01\x00\x05\x00{1:2}"]
)
def test_member_that_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ImageSetError, match="the array 'images' cannot be read"):
        open_image_set(rewritten(tmp_path / "x.npz", "images.npy", content))


def test_truncated_array_is_noticed_while_reading(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    images = open_image_set(rewritten(tmp_path / "x.npz", "images.npy", buffer.getvalue()[:-5]))
    with pytest.raises(ImageSetError, match=r"the array 'images' cannot be read .it ends too early"):
        pixels(images)


def test_flipped_byte_is_noticed_while_reading(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", images=IMAGES)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageSetError, match=r"the array 'images' cannot be read .*CRC"):
        pixels(open_image_set(path))


def test_image_too_small_for_the_crop_is_named(tmp_path: Path) -> None:
    images = open_image_set(archive(tmp_path / "x.npz", images=IMAGES))
    with pytest.raises(
        ImageSetError, match=r"x\.npz images\[0\]: the image is 36x32, smaller than the 64x64 crop"
    ):
        next(images.batches(msgspec.structs.replace(CIFAR, resize=None, crop=64), 1))


def test_memory_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", compressed=True, images=np.zeros((3000, 64, 64, 3), np.uint8))
    tracemalloc.start()
    try:
        for batch in open_image_set(path).batches(CIFAR, 8):
            assert len(batch.images) == 8
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6 < 3000 * 64 * 64 * 3 / 4


def test_labels_may_be_a_column(tmp_path: Path) -> None:
    found = open_image_set(archive(tmp_path / "x.npz", images=IMAGES, labels=LABELS[:, None])).labels
    assert found is not None
    assert np.array_equal(found, LABELS)

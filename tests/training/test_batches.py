"""Order, augmentation and normalization of batches, against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from calibration.preprocess import normalize
from rescompile.errors import DataError
from rescompile.training.augment import crop_and_flip
from rescompile.training.cifar_binary import read_cifar
from rescompile.training.data import open_data
from rescompile.training.feed import Feed, open_feed
from rescompile.training.order import Order, Share
from rescompile.training.recipe import find_recipe


def feed_of(data: str, *changes: str, share: Share | None = None, recipe: str = "digits") -> Feed:
    return open_feed(
        open_data(data), find_recipe(recipe, changes), known=None, seed=3, share=share or Share(),
        device=torch.device("cpu"), workers=0,
    )  # fmt: skip


def archive(path: Path, count: int = 40, side: int = 8, classes: int = 4) -> Path:
    draw = np.random.default_rng(0)
    np.savez(
        path,
        images=draw.integers(0, 256, (count, side, side, 3), np.uint8),
        labels=np.arange(count) % classes,
    )
    return path


def test_every_image_is_used_once_in_a_round() -> None:
    order = Order(10, 4, seed=1)
    found = np.concatenate([order.indices(step) for step in range(5)])
    assert sorted(found[:10]) == sorted(found[10:]) == list(range(10))
    assert list(found[:10]) != list(found[10:])
    assert order.steps_per_epoch == 3
    # a later step does not need the earlier ones
    assert list(Order(10, 4, seed=1).indices(3)) == list(found[12:16])


def test_crop_and_flip_as_a_loop_does_it() -> None:
    draw = np.random.default_rng(0)
    images = torch.from_numpy(draw.random((6, 3, 5, 5), np.float32))
    corners, flips = draw.integers(0, 5, (6, 2)), draw.integers(0, 2, 6) == 1
    found = crop_and_flip(images, corners, flips, 2)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    for image, (y, x), flip, got in zip(padded, corners, flips, found.numpy(), strict=True):
        expected = image[:, y : y + 5, x : x + 5]
        np.testing.assert_array_equal(got, expected[:, :, ::-1] if flip else expected)
    assert 0 < flips.sum() < 6


def test_two_shares_are_one_batch() -> None:
    whole = next(iter(feed_of("digits", "augmentation=pad-crop").training(range(7, 8))))
    halves = [
        next(iter(feed_of("digits", "augmentation=pad-crop", share=Share(rank, 2)).training(range(7, 8))))
        for rank in (0, 1)
    ]
    for part, expected in enumerate(whole):
        assert torch.equal(torch.cat([half[part] for half in halves]), expected)


def test_pixels_are_normalized_as_an_engine_does_it() -> None:
    feed = feed_of("digits", "augmentation=none")
    data = open_data("digits")
    images = np.concatenate([batch.images for batch in data.test.batches(feed.preprocess, 64)])
    got, labels = next(iter(feed.testing()))
    np.testing.assert_allclose(got[:64], normalize(images, feed.preprocess)[:64], atol=1e-6)
    assert data.test.labels is not None
    assert labels.tolist() == data.test.labels[: len(labels)].tolist()


def test_the_pixel_mean_is_that_of_the_training_images() -> None:
    feed = feed_of("digits", "augmentation=none", "batch_size=1437")
    images, _ = next(iter(feed.training(range(1))))
    assert len(images) == 1438 - 1
    # every image once, so each pixel's mean is zero
    assert float(images.mean(0).abs().max()) < 2e-3


def test_digits_are_not_mirrored() -> None:
    assert not feed_of("digits", "flip=true").flip


def test_tiny_images_are_shifted_only_where_the_recipe_says_so() -> None:
    assert feed_of("digits", "augmentation=auto").padding == 0
    assert feed_of("digits", "augmentation=pad-crop").padding == 4


def test_an_archive_alone_keeps_some_images_for_tests(tmp_path: Path) -> None:
    data = open_data(str(archive(tmp_path / "mine.npz")))
    assert (len(data.train), len(data.test), data.classes) == (36, 4, 4)
    assert "every 10th image" in data.notes[0]
    other = open_data(str(tmp_path / "mine.npz"), archive(tmp_path / "test.npz", 12))
    assert (len(other.train), len(other.test), other.notes) == (40, 12, ())


def test_kerass_archives(tmp_path: Path) -> None:
    images = np.zeros((6, 8, 8, 3), np.uint8)
    labels = np.array([[0], [1], [2], [0], [1], [2]])
    np.savez(tmp_path / "k.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
    data = open_data(str(tmp_path / "k.npz"))
    assert (len(data.train), len(data.test), data.classes) == (6, 3, 3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"y_train": np.arange(6) + 0.5},
            "y_train has other values than class indices: save whole numbers from 0",
        ),
        ({"y_test": np.array(["a", "b", "c"])}, "y_test has other values than class indices"),
        ({"y_train": np.array([0, 1, np.nan, 0, 1, 2])}, "y_train has other values than class indices"),
        ({"y_train": np.array([0, 1, -1, 0, 1, 2])}, "negative labels"),
        (
            {"x_test": np.zeros((3, 8, 8, 3), np.float32)},
            r"x_test is float32: save uint8 pixels \[N, H, W, C\]",
        ),
    ],
)
def test_arrays_that_are_no_pixels_or_classes_are_refused(
    tmp_path: Path, changed: dict[str, NDArray[Any]], said: str
) -> None:
    images = np.zeros((6, 8, 8, 3), np.uint8)
    arrays = {"x_train": images, "y_train": np.arange(6), "x_test": images[:3], "y_test": np.arange(3)}
    np.savez(tmp_path / "k.npz", **(arrays | changed))
    with pytest.raises(DataError, match=said):
        open_data(str(tmp_path / "k.npz"))


def write_cifar(folder: Path, rows: int = 4) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = draw.integers(0, 256, (rows, 3, 32, 32), np.uint8)
        labels = np.full((rows, 1), number, np.uint8)
        (folder / f"{name}.bin").write_bytes(np.hstack([labels, pixels.reshape(rows, -1)]).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")


def test_cifars_binary_files(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin")
    for folder in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        data = open_data(str(folder))
        assert (len(data.train), len(data.test), data.class_names) == (20, 4, tuple("abcdefghij"))
        assert data.train.labels is not None
        assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    rows = np.frombuffer((tmp_path / "cifar-10-batches-bin/data_batch_1.bin").read_bytes(), np.uint8)
    found = read_cifar(tmp_path / "cifar-10-batches-bin")
    assert found is not None
    # red, green and blue of the first pixel are a plane apart
    assert found[0].images[0, 0, 0].tolist() == rows[[1, 1 + 1024, 1 + 2048]].tolist()


def test_cifar_100_has_fine_labels(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3072), np.uint8)
    for name in ("train.bin", "test.bin"):
        labels = np.array([[1, 42], [2, 99]], np.uint8)
        (tmp_path / name).write_bytes(np.hstack([labels, pixels]).tobytes())
    found = read_cifar(tmp_path)
    assert found is not None
    assert found[0].labels.tolist() == [42, 99]


def test_folders(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(3):
                image = np.full((12, 12, 3), 100 * number + index, np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{index}.png")
    data = open_data(str(tmp_path))
    assert (len(data.train), len(data.test), data.class_names) == (6, 6, ("cat", "dog"))
    feed = feed_of(str(tmp_path), "batch_size=2")
    assert next(iter(feed.training(range(1))))[0].shape == (2, 3, 12, 12)
    (tmp_path / "val/dog").rename(tmp_path / "val/horse")
    with pytest.raises(DataError, match="horse"):
        open_data(str(tmp_path))


def test_photographs_are_augmented_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(10):
            pixels = np.random.default_rng(index).integers(0, 256, (90, 120, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    changes = ("image_size=64", "batch_size=4", "epochs=1", "color=jitter")
    one, two = (feed_of(str(tmp_path), *changes, recipe="torchvision-v1") for _ in range(2))
    first, second = (list(feed.training(range(1, 3))) for feed in (one, two))
    assert torch.equal(first[1][0], second[1][0])
    assert first[0][0].shape == (4, 3, 64, 64)
    assert next(iter(one.testing()))[0].shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: str(path / "none"), "does not exist"),
        (str, "holds no images"),
        (lambda path: (path / "x.npz").write_bytes(b"PK") and str(path / "x.npz"), "npz"),
        (lambda path: (path / "data_batch_1").write_bytes(b"\x80") and str(path), "pickles"),
        (lambda path: (path / "data_batch_1.bin").write_bytes(b"ab") and str(path), "not rows of 3073"),
        (lambda path: str(archive(path / "one.npz", 20, classes=1)), "of one class"),
        (lambda path: str(archive(path / "few.npz", 3)), "no test images"),
    ],
)
def test_images_that_cannot_be_used(make: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        open_data(make(tmp_path))  # type: ignore[operator]


def test_labels_of_other_classes_are_refused(tmp_path: Path) -> None:
    few, many = archive(tmp_path / "few.npz", classes=3), archive(tmp_path / "many.npz", classes=5)
    with pytest.raises(DataError, match="a label of 4"):
        open_data(str(few), many)

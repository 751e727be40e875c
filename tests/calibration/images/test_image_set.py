from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.preprocess import CIFAR, IMAGENET, Preprocess
from tests.calibration.images.folders import SIDE, flat, picture, save, with_csv

WHOLE = msgspec.structs.replace(CIFAR, resize=None, crop=SIDE)


def all_pixels(images: ImageSet, batch_size: int = 4) -> NDArray[np.uint8]:
    return np.concatenate([batch.images for batch in images.batches(WHOLE, batch_size)])


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    for seed, name in enumerate(("dog/a.png", "cat/b.jpg.png", "cat/deep/c.png", "zebra/d.png")):
        save(tmp_path / name, seed)
    images = open_image_set(tmp_path, need_labels=True)
    assert images.class_names == ("cat", "dog", "zebra")
    assert images.images.names == ("cat/b.jpg.png", "cat/deep/c.png", "dog/a.png", "zebra/d.png")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 2]
    assert np.array_equal(all_pixels(images), [picture(seed) for seed in (1, 2, 0, 3)])


def test_labels_csv_gives_labels_and_names(tmp_path: Path) -> None:
    text = "file,class_index,name\n02.png,7,pug\n00.png,0,\n01.png,7,pug\n"
    images = open_image_set(with_csv(tmp_path / "set", text), need_labels=True)
    assert images.source == "set"
    assert images.images.names == ("00.png", "01.png", "02.png")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 7, 7]
    assert images.class_names == ("0", "1", "2", "3", "4", "5", "6", "pug")


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    images = open_image_set(flat(tmp_path))
    assert (len(images), images.labels, images.class_names) == (6, None, None)
    with pytest.raises(
        ImageSetError, match="has no labels, which are needed here: use one sub-folder per class"
    ):
        open_image_set(tmp_path, need_labels=True)


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_batches_hold_every_image_once_in_order(tmp_path: Path, batch_size: int) -> None:
    text = "file,class_index\n" + "".join(f"{index:02d}.png,{index}\n" for index in range(6))
    flat(with_csv(tmp_path, text) / "images")
    batches = list(open_image_set(tmp_path).batches(WHOLE, batch_size))
    assert [len(batch.images) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert np.array_equal(np.concatenate([batch.images for batch in batches]), [picture(i) for i in range(6)])
    assert [label for batch in batches for label in batch.labels] == list(range(6))  # type: ignore[union-attr]


def test_batches_may_be_asked_for_again(tmp_path: Path) -> None:
    images = open_image_set(flat(tmp_path))
    assert np.array_equal(all_pixels(images, 2), all_pixels(images, 5))


def test_batch_size_below_one_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(open_image_set(flat(tmp_path)).batches(WHOLE, 0))


def test_selection_depends_on_names_and_seed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = open_image_set(flat(tmp_path / "a", 30), limit=7, seed=3)
    for index in reversed(range(30)):
        save(tmp_path / "b" / f"{index:02d}.png", index)
    original = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(original(folder), reverse=True)))
    backward = open_image_set(tmp_path / "b", limit=7, seed=3)
    assert forward.images.names == backward.images.names == tuple(sorted(forward.images.names))
    assert forward.fingerprint == backward.fingerprint
    assert open_image_set(tmp_path / "b", limit=7, seed=4).images.names != backward.images.names
    assert (forward.seed, len(forward)) == (3, 7)


def test_labels_follow_the_selection(tmp_path: Path) -> None:
    for index in range(20):
        save(tmp_path / f"{index // 10}" / f"{index:02d}.png", index)
    images = open_image_set(tmp_path, limit=5)
    assert images.labels is not None
    assert images.labels.tolist() == [int(name[0]) for name in images.images.names]
    assert images.class_names == ("0", "1")


@pytest.mark.parametrize("limit", [None, 6, 1000])
def test_limit_beyond_the_set_takes_all(tmp_path: Path, limit: int | None) -> None:
    assert len(open_image_set(flat(tmp_path), limit=limit)) == 6


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_that_leaves_nothing_is_refused(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ImageSetError, match=f"a limit of {limit} leaves no images"):
        open_image_set(flat(tmp_path), limit=limit)


def test_fingerprint_tells_contents_names_and_selection_apart(tmp_path: Path) -> None:
    original = open_image_set(flat(tmp_path / "a"))
    assert original.fingerprint == open_image_set(flat(tmp_path / "copy")).fingerprint
    assert original.fingerprint != open_image_set(tmp_path / "a", limit=5).fingerprint
    (flat(tmp_path / "b") / "03.png").rename(tmp_path / "b" / "03 renamed.png")
    assert original.fingerprint != open_image_set(tmp_path / "b").fingerprint
    file = flat(tmp_path / "c") / "03.png"
    file.write_bytes(file.read_bytes() + b"\0")
    assert original.fingerprint != open_image_set(tmp_path / "c").fingerprint


def test_unreadable_image_stops_the_batches_by_name(tmp_path: Path) -> None:
    (flat(tmp_path) / "04.png").write_text("no image at all")
    with pytest.raises(ImageSetError, match=r"04\.png cannot be read .*remove it, or pass --skip-unreadable"):
        all_pixels(open_image_set(tmp_path))


def test_unreadable_images_are_left_out_on_request_with_their_labels(tmp_path: Path) -> None:
    for index in range(6):
        save(tmp_path / f"{index % 2}" / f"{index}.png", index)
    broken = tmp_path / "1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-2000])
    images = open_image_set(tmp_path, skip_unreadable=True)
    assert images.skipped == ("1/3.png",)
    assert images.images.names == ("0/0.png", "0/2.png", "0/4.png", "1/1.png", "1/5.png")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(all_pixels(images), [picture(index) for index in (0, 2, 4, 1, 5)])


def test_set_of_nothing_but_unreadable_images_is_refused(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(b"\xff\xd8 no jpeg")
    with pytest.raises(ImageSetError, match="none of the 3 images can be read"):
        open_image_set(tmp_path, skip_unreadable=True)


def test_image_too_small_for_the_crop_is_named(tmp_path: Path) -> None:
    images = open_image_set(flat(tmp_path))
    with pytest.raises(ImageSetError, match=r"00\.png: the image is 40x40, smaller than the 64x64 crop"):
        next(images.batches(msgspec.structs.replace(CIFAR, resize=None, crop=64), 1))


def test_single_image_is_refused_with_its_folder_suggested(tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match="is a single image: pass the folder that holds it"):
        open_image_set(flat(tmp_path) / "00.png")


def test_single_image_is_opened_where_one_is_enough_to_look_at(tmp_path: Path) -> None:
    found = open_image_set(flat(tmp_path) / "00.png", single=True)
    assert (found.source, len(found), found.labels) == ("00.png", 1, None)
    (alone,) = found.batches(CIFAR, 1)
    first, *_ = open_image_set(tmp_path).batches(CIFAR, 1)
    np.testing.assert_array_equal(alone.images, first.images)
    with pytest.raises(ImageSetError, match="does not exist"):
        open_image_set(tmp_path / "none.png", single=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent", "does not exist"), ("absent.npz", "does not exist"), ("notes.txt", "is not an image set")],
)
def test_path_that_is_no_set_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageSetError, match=words):
        open_image_set(str(tmp_path / name))


def test_file_that_vanishes_is_named(tmp_path: Path) -> None:
    images = open_image_set(flat(tmp_path))
    (tmp_path / "05.png").unlink()
    with pytest.raises(ImageSetError, match=r"05\.png cannot be read \(No such file"):
        all_pixels(images)
    with pytest.raises(ImageSetError, match=r"05\.png cannot be read"):
        _ = images.fingerprint


class Endless:
    """A source that counts how many of its images were asked for, and in how many threads at most."""

    names = tuple(str(index) for index in range(1000))

    def __init__(self) -> None:
        self.asked = 0

    def decoders(self) -> Iterator[Callable[[Preprocess], NDArray[np.uint8]]]:
        for _ in self.names:
            self.asked += 1
            yield lambda preprocess: np.zeros((preprocess.crop, preprocess.crop, 3), np.uint8)

    def contents(self) -> Iterator[bytes]:
        return (b"" for _ in self.names)


def test_look_ahead_is_bounded_and_threads_end_with_the_iterator() -> None:
    source = Endless()
    batches = ImageSet(source="endless", images=source).batches(IMAGENET, 4)
    next(batches)
    assert source.asked <= 4 + 9
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_real_calibration_images_are_read_with_their_labels(real_data: Path) -> None:
    images = open_image_set(real_data / "imagenet" / "calibration", limit=3, need_labels=True)
    batch = next(images.batches(IMAGENET, 3))
    assert batch.images.shape == (3, 224, 224, 3)
    assert batch.labels is not None
    assert images.class_names is not None
    assert all(images.class_names[label] for label in batch.labels)

"""Two networks are compared on an image set that belongs to them, and both get the same images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.preprocess import CIFAR, normalize
from rescompile.accuracy import parity as module
from rescompile.accuracy.parity import (
    SAMPLE_SIZE,
    Measurement,
    compare_logits,
    image_batches,
    open_validation_set,
)
from rescompile.errors import BackendError
from rescompile.manifest import TensorSpec
from rescompile.progress import Silent


def test_class_folders_must_be_the_networks_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "a.png")

    def opened(classes: int) -> Any:
        return open_validation_set(
            tmp_path, classes=classes, limit=None, need_labels=True, skip_unreadable=False
        )

    assert opened(2).class_names == ("cat", "dog")
    with pytest.raises(ImageSetError, match=r"has 2 class folders, the network has 3 classes.*labels\.csv"):
        opened(3)


@pytest.mark.parametrize(
    "fed",
    [
        TensorSpec("input", (-1, 3, 32, 32), "float32", "NCHW"),
        TensorSpec("input", (-1, 32, 32, 3), "uint8", "NHWC"),
    ],
)
def test_both_networks_get_the_same_images(small: Path, fed: TensorSpec) -> None:
    batches = list(image_batches(open_image_set(small / "images.npz", limit=10), CIFAR, fed))
    assert [len(batch.reference) for batch in batches] == [8, 2]
    for batch in batches:
        assert batch.candidate.dtype == fed.dtype
        assert batch.candidate.shape[1:] == fed.shape[1:]
        given = normalize(batch.candidate, CIFAR) if fed.dtype == "uint8" else batch.candidate
        np.testing.assert_array_equal(given, batch.reference)


WEIGHTS = np.random.default_rng(3).normal(size=(3 * 4 * 4, 6)).astype(np.float32)
STEPS = msgspec.structs.replace(CIFAR, resize=None, crop=4)
PIXELS = TensorSpec("input", (-1, 4, 4, 3), "uint8", "NHWC")


def network(images):
    return images.reshape(-1, len(WEIGHTS)) @ WEIGHTS


def pixel_network(pixels):
    return network(normalize(pixels, STEPS)) + np.float32(0.01)


class Photos:
    """Random images of 4 x 4 pixels."""

    def __init__(self, count: int) -> None:
        self.pixels = np.random.default_rng(4).integers(0, 256, (count, 4, 4, 3), np.uint8)
        self.names = tuple(map(str, range(count)))

    def decoders(self):
        return (lambda steps, pixels=pixels: pixels for pixels in self.pixels)

    def digests(self):
        return self.contents()

    def contents(self):
        return (pixels.tobytes() for pixels in self.pixels)


def photos(count: int) -> ImageSet:
    source = Photos(count)
    labels = network(normalize(source.pixels, STEPS)).argmax(axis=1) if count else np.zeros(0, np.int64)
    return ImageSet(source="photos", images=source, labels=labels)


def measure(count: int = 10, *, candidate=pixel_network, progress=None) -> Measurement:
    return compare_logits(
        network,
        candidate,
        images=photos(count),
        preprocess=STEPS,
        candidate_input=PIXELS,
        progress=progress or Silent(),
    )


def test_each_network_gets_its_own_input_and_both_are_compared() -> None:
    found = measure().parity
    assert (found.images, found.image_source, found.image_fingerprint) == (
        10,
        "photos",
        photos(10).fingerprint,
    )
    assert (found.top1_reference, found.top1_engine, found.top1_agreement) == (1.0, 1.0, 1.0)
    assert found.max_abs == pytest.approx(0.01, rel=1e-3)


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Silent):
        def advanced(self, done: int, total: int) -> None:
            seen.append((done, total))

    measure(progress=Watching())
    assert seen == [(8, 10), (10, 10)]


def test_all_logits_are_kept_while_they_are_few() -> None:
    pairs = np.array(measure(10).logits)
    assert pairs.shape == (60, 2)
    assert pairs[:, 1] - pairs[:, 0] == pytest.approx(np.full(60, 0.01), abs=1e-4)


def test_the_sample_of_many_logits_is_bounded_seeded_and_independent_of_the_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = measure(500)
    monkeypatch.setattr(module, "BATCH", 50)
    many = measure(500)
    assert len(few.logits) == SAMPLE_SIZE
    # BLAS may round a matrix product otherwise for another batch size
    assert np.allclose(few.logits, many.logits, rtol=1e-5, atol=1e-5)


def test_the_sample_reaches_all_images() -> None:
    firsts = {pair[0] for pair in measure(500).logits}
    batches = image_batches(photos(500), STEPS, PIXELS)
    logits = np.concatenate([network(batch.reference) for batch in batches])
    kept = [len(firsts & set(map(float, part.ravel()))) for part in np.array_split(logits, 10)]
    assert min(kept) > SAMPLE_SIZE / 10 / 2


def test_an_engine_that_returns_nan_is_refused() -> None:
    with pytest.raises(BackendError, match="NaN"):
        measure(3, candidate=lambda pixels: pixel_network(pixels) * np.nan)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ImageSetError, match="photos has no images"):
        measure(0)


def turned(pixels):
    """The network with the classes of the image in its first row exchanged."""
    logits = network(normalize(pixels, STEPS))
    first, second = logits[0].argsort()[-2:]
    logits[0, [first, second]] = logits[0, [second, first]]
    return logits


def test_changed_images_come_with_margins_and_pictures_and_are_counted_by_class() -> None:
    found = compare_logits(
        network,
        turned,
        images=photos(10),
        preprocess=STEPS,
        candidate_input=PIXELS,
        thumbnails=True,
        progress=Silent(),
    )
    classes = [f"class {index}" for index in range(6)]
    flips = found.flips(classes)
    assert [flip.image for flip in flips] == ["0", "8"], "the first of each batch of eight"
    pictures = [np.asarray(Image.open(io.BytesIO(flip.thumbnail)).convert("RGB")) for flip in flips]
    assert np.array_equal(pictures[1], photos(10).images.pixels[8])
    logits = network(normalize(photos(10).images.pixels, STEPS))[8]
    assert flips[1].reference_margin == pytest.approx(
        logits[logits.argsort()[-1]] - logits[logits.argsort()[-2]]
    )
    assert flips[1].engine_margin == pytest.approx(flips[1].reference_margin)
    changes = found.class_changes(classes)
    assert sum(change.changed for change in changes) == 2
    for change in changes:
        assert change.right_reference == change.images
        assert change.right_engine == change.images - change.changed


def test_without_labels_the_reference_says_which_class_an_image_has() -> None:
    unlabelled = replace(photos(3), labels=None)
    found = compare_logits(
        network, turned, images=unlabelled, preprocess=STEPS, candidate_input=PIXELS, progress=Silent()
    )
    (change,) = found.class_changes([str(index) for index in range(6)])
    assert (change.changed, change.right_reference, change.right_engine) == (1, None, None)
    assert found.flips([str(index) for index in range(6)])[0].thumbnail == b""

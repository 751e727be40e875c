"""A network that was fed in another way than it was trained is noticed on labelled images."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration.images import open_image_set
from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize
from rescompile.accuracy.other_preprocessing import CHUNK, USUAL, better_preprocessing
from rescompile.models.registry import create, find

TRAINED = {
    "as assumed": {},
    **USUAL,
    "BGR": {"mean": CIFAR.mean[::-1], "std": CIFAR.std[::-1], "color": "BGR"},
}
BGR = msgspec.structs.replace(IMAGENET, **TRAINED["BGR"])


class Counted:
    """A random network, and how many images it has seen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._net, self.images = create(find(depth=None, name="resnet8-cifar"), 10), 0
        self._centre = np.zeros(10, np.float32)

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.images += len(images)
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._net(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits - self._centre

    def centre_on(self, images: NDArray[np.float32]) -> None:
        """Make every class the answer to some of ``images``."""
        self._centre += self(images).mean(0)


def labelled(folder: Path, count: int, trained: Preprocess, right: float = 0.95) -> tuple[Path, Counted]:
    """Images, of which the network answers a share of ``right`` with their label if it is fed as it was trained."""
    random = np.random.default_rng(1)
    tiles = random.integers(0, 256, (count, 4, 4, 3), np.uint8)
    pixels = tiles.repeat(8, 1).repeat(8, 2)
    ordered = pixels if trained.color == "RGB" else pixels[..., ::-1]
    network = Counted()
    network.centre_on(normalize(ordered, trained))
    labels = network(normalize(ordered, trained)).argmax(1)
    labels = np.where(random.random(count) < right, labels, (labels + 1) % 10)
    np.savez(folder / "images.npz", images=pixels, labels=labels)
    network.images = 0
    return folder / "images.npz", network


@pytest.mark.parametrize("name", TRAINED)
def test_the_normalization_of_the_training_is_found(tmp_path: Path, name: str) -> None:
    trained = msgspec.structs.replace(CIFAR, **TRAINED[name])
    path, network = labelled(tmp_path, 160, trained)
    found = better_preprocessing(network, open_image_set(path), CIFAR)
    if trained == CIFAR:
        assert found is None
    else:
        assert found is not None
        assert found.preprocess == trained
        assert found.top1 > 0.9 > found.top1_assumed
        assert found.options.endswith(f"--color {trained.color}")


def test_a_right_assumption_costs_few_chunks_for_each_rival(tmp_path: Path) -> None:
    path, network = labelled(tmp_path, 160, CIFAR)
    assert better_preprocessing(network, open_image_set(path), CIFAR) is None
    assert network.images <= 2 * CHUNK * (len(USUAL) + 1)


def test_labels_of_no_meaning_decide_nothing(tmp_path: Path) -> None:
    path, network = labelled(tmp_path, 160, CIFAR, right=0.1)
    labels = np.random.default_rng(2).integers(0, 10, 160)
    np.savez(path, images=np.load(path)["images"], labels=labels)
    assert better_preprocessing(network, open_image_set(path), CIFAR) is None


def test_without_labels_nothing_is_run(tmp_path: Path) -> None:
    path, network = labelled(tmp_path, 8, CIFAR)
    np.savez(path, images=np.load(path)["images"])
    assert better_preprocessing(network, open_image_set(path), CIFAR) is None
    assert network.images == 0


@pytest.mark.parametrize(
    ("assumed", "name"),
    [
        (IMAGENET, None),
        (msgspec.structs.replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3), "ImageNet's mean and std"),
        (BGR, "the same in RGB"),
    ],
)  # fmt: skip
def test_a_real_network_is_seen_to_be_fed_wrongly(
    real_data: Path, assumed: Preprocess, name: str | None
) -> None:
    from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of

    checkpoint = load_checkpoint(real_data / "weights" / "resnet20-12fca82f.th")
    model = build_model(spec_of(checkpoint), checkpoint)

    def network(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = model(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        return logits

    images = open_image_set(real_data / "cifar10" / "test.npz", limit=256)
    found = better_preprocessing(network, images, msgspec.structs.replace(assumed, resize=None, crop=32))
    assert (found.name if found else None) in {name, "ImageNet's mean and std" if name else None}

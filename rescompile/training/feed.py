"""Batches for training and tests: normalized tensors on the device, the same for the same seed and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.errors import ImageSetError
from calibration.images import ImageSet
from calibration.images.archive import ArchiveImages
from calibration.images.arrays import ArrayImages
from calibration.images.files import ImageFiles, open_image
from calibration.preprocess import IMAGENET, Preprocess
from rescompile.errors import DataError
from rescompile.training.augment import crop_and_flip, lights
from rescompile.training.data import TrainingData, labels_of
from rescompile.training.order import Order, Share
from rescompile.training.photographs import PhotographLoader, scan
from rescompile.training.recipe import Recipe

SMALL = 64
"""Images of at most this side stay in memory and are cropped with padding, unless the recipe says otherwise."""
TINY = 16
"""Images below this side are not shifted, unless the recipe says pad-crop: a few pixels are most of their content."""
TEST_BATCH = 256
_MOST_BYTES = 16 << 30
_MEAN_IMAGES = 2000
_PHOTOGRAPH = 224

Batches = Iterator[tuple[Tensor, Tensor]]


class Pixels(Protocol):
    """Images as uint8 tensors [N, 3, H, W] on the CPU or the device."""

    def training(self, steps: range, order: Order, share: Share) -> Iterator[Tensor]:
        """Images of this process for each of ``steps``, without the augmentation that works on a whole batch at
        once."""

    def testing(self, batches: list[NDArray[np.int64]]) -> Iterator[Tensor]:
        """Test images at the given places."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """All images as two arrays [N, 3, H, W]."""

    train: Tensor
    test: Tensor

    def training(self, steps: range, order: Order, share: Share) -> Iterator[Tensor]:
        """See ``Pixels``."""
        for step in steps:
            yield self.train[torch.from_numpy(share.of(order.indices(step))).to(self.train.device)]

    def testing(self, batches: list[NDArray[np.int64]]) -> Iterator[Tensor]:
        """See ``Pixels``."""
        for places in batches:
            yield self.test[torch.from_numpy(places).to(self.test.device)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Feed:
    """The images of one training, ready for the network."""

    pixels: Pixels
    train_labels: Tensor
    test_labels: Tensor
    preprocess: Preprocess
    order: Order
    share: Share
    device: torch.device
    padding: int | None
    """Where batches are cropped with padding."""
    flip: bool
    lit: bool

    def training(self, steps: range) -> Batches:
        """(images, labels) of this process for each of ``steps``."""
        for step, pixels in zip(steps, self.pixels.training(steps, self.order, self.share), strict=True):
            indices = torch.from_numpy(self.share.of(self.order.indices(step)))
            yield self._augmented(pixels, step), self.train_labels[indices].to(self.device)

    def testing(self) -> Batches:
        """(images, labels) of this process's part of the test images."""
        mine = np.arange(self.share.rank, len(self.test_labels), self.share.world)
        batches = [mine[start : start + TEST_BATCH] for start in range(0, len(mine), TEST_BATCH)]
        for places, pixels in zip(batches, self.pixels.testing(batches), strict=True):
            yield self._normalized(pixels), self.test_labels[torch.from_numpy(places)].to(self.device)

    def _augmented(self, pixels: Tensor, step: int) -> Tensor:
        draw, count = self.order.draw(step), self.order.batch_size
        most = 2 * (self.padding or 0) + 1
        corners, flips = draw.integers(0, most, (count, 2)), draw.integers(0, 2, count) == 1
        shift = torch.from_numpy(self.share.of(lights(draw, count))).to(self.device) if self.lit else None
        images = self._normalized(pixels, shift)
        if self.padding is None:
            return images
        mirrored = self.share.of(flips if self.flip else np.zeros(count, bool))
        return crop_and_flip(images, self.share.of(corners), mirrored, self.padding)

    def _normalized(self, pixels: Tensor, shift: Tensor | None = None) -> Tensor:
        images = pixels.to(self.device, torch.float32, non_blocking=True) / 255
        if shift is not None:
            images = images + shift[:, :, None, None]
        mean = torch.from_numpy(self.preprocess.subtracted().copy()).to(self.device)
        std = torch.tensor(self.preprocess.std, device=self.device)[:, None, None]
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _padding(recipe: Recipe, side: int) -> int | None:
    if recipe.augmentation == "none":
        return None
    return 0 if recipe.augmentation == "auto" and side < TINY else recipe.padding


def open_feed(
    data: TrainingData,
    recipe: Recipe,
    *,
    known: Preprocess | None,
    seed: int,
    share: Share,
    device: torch.device,
    workers: int,
) -> Feed:
    """The images of ``data`` as ``recipe`` takes them; ``known`` is the preprocessing of weights to go on from.

    Raises:
        DataError: an image cannot be read, or the images do not fit the recipe.
    """
    try:
        own = _own_side(data.train)
        in_memory = recipe.augmentation in ("none", "pad-crop") or (
            recipe.augmentation == "auto" and own is not None and own <= SMALL
        )
        side = (
            recipe.image_size or (known.size[0] if known else None) or own if in_memory else recipe.image_size
        )
        if in_memory and side is None:
            raise DataError(
                f"the images of {data.name} are not squares of one size, so the network's input size is unknown: pass "
                "--set image_size=32, or a recipe for photographs"
            )
        geometry = known or _geometry(side or _PHOTOGRAPH, whole=in_memory)
        if in_memory:
            train, test = (_pixels(images, geometry) for images in (data.train, data.test))
            preprocess = known or _preprocess(recipe, geometry, train)
            pixels: Pixels = InMemory(
                *(torch.from_numpy(part.transpose(0, 3, 1, 2)).to(device) for part in (train, test))
            )
        else:
            scan(recipe)
            sample = data.train.part(_spread(len(data.train), _MEAN_IMAGES))
            preprocess = known or _preprocess(
                recipe,
                geometry,
                _pixels(sample, geometry) if recipe.normalization != "imagenet" else np.empty(0, np.uint8),
            )
            pixels = PhotographLoader(data.train, data.test, preprocess, recipe, workers)
    except ImageSetError as error:
        raise DataError(str(error)) from None
    return Feed(
        pixels=pixels,
        train_labels=torch.from_numpy(labels_of(data.train)),
        test_labels=torch.from_numpy(labels_of(data.test)),
        preprocess=preprocess,
        order=Order(len(data.train), recipe.batch_size, seed),
        share=share,
        device=device,
        padding=_padding(recipe, preprocess.size[0]) if in_memory else None,
        flip=recipe.flip and data.mirrored,
        lit=recipe.color == "lighting",
    )


def calibration_sample(
    data: TrainingData, preprocess: Preprocess, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """At most ``count`` training images [N, H, W, 3] with labels, spread over all, as a test would see them."""
    chosen = _spread(len(data.train), count)
    part = data.train.part(chosen)
    return _pixels(part, preprocess), labels_of(part)


def _spread(count: int, wanted: int) -> NDArray[np.bool_]:
    """A mask of ``wanted`` places, drawn with a fixed seed."""
    mask = np.zeros(count, bool)
    mask[np.random.default_rng(0).permutation(count)[:wanted]] = True
    return mask


def _own_side(images: ImageSet) -> int | None:
    """The side of the images where the first of them is a square, else None."""
    source = images.images
    if isinstance(source, ImageFiles):
        width, height = open_image(source.root / source.names[0]).size
    else:
        assert isinstance(source, ArchiveImages | ArrayImages)
        height, width = source.shape[:2] if isinstance(source, ArchiveImages) else source.images.shape[1:3]
    return height if height == width else None


def _geometry(side: int, *, whole: bool) -> Preprocess:
    """Small images are resized as a whole; of photographs the middle is taken, as torchvision does."""
    resize = side if whole else round(side * 256 / 224)
    return msgspec.structs.replace(IMAGENET, resize=resize, crop=side)


def _pixels(images: ImageSet, preprocess: Preprocess) -> NDArray[np.uint8]:
    height, width = preprocess.size
    needed = len(images) * height * width * preprocess.channels
    if needed > _MOST_BYTES:
        raise DataError(
            f"{len(images):,} images of {width}x{height} need {needed / 1e9:.0f} GB of memory: use a recipe for "
            "photographs, such as torchvision-v1, which reads them one by one"
        )
    parts = [batch.images for batch in images.batches(preprocess, TEST_BATCH)]
    return np.concatenate(parts).astype(np.uint8, copy=False)


def _preprocess(recipe: Recipe, geometry: Preprocess, sample: NDArray[np.uint8]) -> Preprocess:
    """``geometry`` with the normalization of ``recipe``, measured on ``sample`` [N, H, W, 3]."""
    if recipe.normalization == "imagenet":
        return geometry
    if recipe.normalization == "pixel-mean":
        mean = sample.mean(0, dtype=np.float64).transpose(2, 0, 1) / 255
        return msgspec.structs.replace(
            geometry, mean=(0.0,) * 3, std=(1.0,) * 3, mean_image=mean.astype("<f4").tobytes()
        )
    flat = sample.reshape(-1, 3)
    means, stds = flat.mean(0, dtype=np.float64) / 255, flat.std(0, dtype=np.float64) / 255
    return msgspec.structs.replace(
        geometry, mean=tuple(means.tolist()), std=tuple(np.maximum(stds, 1e-3).tolist())
    )

"""Photographs that do not fit into memory: read by torch's loader, augmented by torchvision's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calibration.images import ImageSet
from calibration.images.archive import ArchiveImages
from calibration.images.arrays import ArrayImages
from calibration.images.files import ImageFiles, open_image
from calibration.preprocess import Preprocess, to_rgb, to_uint8
from rescompile.errors import DataError
from rescompile.optional import require
from rescompile.training.order import Order, Share
from rescompile.training.recipe import Recipe

_SCALES = range(256, 481)
"""Shorter sides that the paper draws from."""
_JITTER = 0.4
_TEST = -1
_Item = tuple[int, int]
"""Place of the image, and the seed of its augmentation or ``_TEST``."""


def scan(recipe: Recipe) -> None:
    """Refuse a recipe whose transforms are not installed.

    Raises:
        BackendUnavailable: torchvision is missing.
    """
    _transforms(recipe, 224)


@dataclass(frozen=True, eq=False)
class PhotographLoader:
    """See ``feed.Pixels``."""

    train: ImageSet
    test: ImageSet
    preprocess: Preprocess
    recipe: Recipe
    workers: int

    def training(self, steps: range, order: Order, share: Share) -> Iterator[Tensor]:
        """See ``feed.Pixels``."""
        batches = []
        for step in steps:
            seeds = order.draw(step).integers(0, 2**62, order.batch_size)
            batches.append(
                list(zip(share.of(order.indices(step)).tolist(), share.of(seeds).tolist(), strict=True))
            )
        transform = _transforms(self.recipe, self.preprocess.size[0])
        yield from self._load(_Photographs(self.train, self.preprocess, transform), batches)

    def testing(self, batches: list[NDArray[np.int64]]) -> Iterator[Tensor]:
        """See ``feed.Pixels``."""
        items = [[(int(place), _TEST) for place in places] for places in batches]
        yield from self._load(_Photographs(self.test, self.preprocess, None), items)

    def _load(self, photographs: _Photographs, batches: list[list[_Item]]) -> Iterator[Tensor]:
        loader: DataLoader[Tensor] = DataLoader(
            photographs,
            batch_sampler=batches,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
        yield from loader


class _Photographs(Dataset[Tensor]):
    """Photographs as uint8 tensors [3, H, W] of the network's size."""

    def __init__(self, images: ImageSet, preprocess: Preprocess, transform: Any) -> None:
        self._images, self._preprocess, self._transform = images.images, preprocess, transform
        if isinstance(images.images, ArchiveImages):
            raise DataError(
                f"{images.source} is an archive, whose photographs cannot be read in any order: unpack it into folders "
                "of classes, or pass --set augmentation=pad-crop"
            )

    def __getitem__(self, item: _Item) -> Tensor:
        place, seed = item
        source = self._images
        if isinstance(source, ImageFiles):
            image = open_image(source.root / source.names[place])
        else:
            assert isinstance(source, ArrayImages)
            image = to_rgb(source.images[source.chosen[place]].astype(np.uint8, copy=False))
        if seed == _TEST:
            return torch.from_numpy(to_uint8(image, self._preprocess).transpose(2, 0, 1).copy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            augmented: Tensor = self._transform(image)
        return augmented


def _transforms(recipe: Recipe, side: int) -> Any:
    v2 = require("torchvision.transforms.v2", f"the augmentation {recipe.augmentation}")
    cut = (
        [v2.RandomShortestSize(list(_SCALES), antialias=True), v2.RandomCrop(side)]
        if recipe.augmentation == "scale-crop"
        else [v2.RandomResizedCrop(side, antialias=True)]
    )
    return v2.Compose(
        [
            v2.PILToTensor(),
            *cut,
            *([v2.RandomHorizontalFlip()] if recipe.flip else []),
            *([v2.ColorJitter(_JITTER, _JITTER, _JITTER)] if recipe.color == "jitter" else []),
        ]
    )

"""Augmentation of a whole batch at once."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_COLOUR_AXES = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
_COLOUR_VARIANCES = np.array([0.2175, 0.0188, 0.0045], np.float32)
"""Principal axes and values of ImageNet's RGB colours in [0, 1] (Krizhevsky et al., 2012)."""
_LIGHTING_STD = 0.1


def crop_and_flip(
    images: Tensor, corners: NDArray[np.int64], flips: NDArray[np.bool_], padding: int
) -> Tensor:
    """Each of ``images`` [N, C, H, W] padded with zeros, cropped to its size at its corner [y, x], perhaps mirrored.

    The result is in the channels_last layout.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = corners[:, :1] + np.arange(height)
    columns = corners[:, 1:] + np.arange(width)
    columns = np.where(flips[:, None], columns[:, ::-1], columns)
    number, row, column = (
        torch.from_numpy(index).to(images.device)
        for index in (np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    )
    return padded[number, :, row, column].permute(0, 3, 1, 2)


def lights(draw: np.random.Generator, count: int) -> NDArray[np.float32]:
    """The colours [count, 3] to add to images in [0, 1], each along ImageNet's principal axes."""
    amounts = draw.normal(0.0, _LIGHTING_STD, (count, 3)).astype(np.float32)
    colours: NDArray[np.float32] = ((amounts * _COLOUR_VARIANCES) @ _COLOUR_AXES.T).astype(np.float32)
    return colours

"""Checkpoints that quantize badly on purpose, and compute the same function in fp32."""

from __future__ import annotations

from torch import Tensor

FACTOR = 100.0


def with_outlier(
    state: dict[str, Tensor], block: str, channel: int, factor: float = FACTOR
) -> dict[str, Tensor]:
    """A state dict whose ``block`` has ``factor`` times as large values in one channel behind its first ReLU.

    The convolution behind it divides them again, so nothing changes but the range of that tensor.
    """
    damaged = {name: tensor.clone() for name, tensor in state.items()}
    for part in ("weight", "bias"):
        damaged[f"{block}.bn1.{part}"][channel] *= factor
    damaged[f"{block}.conv2.weight"][:, channel] /= factor
    return damaged

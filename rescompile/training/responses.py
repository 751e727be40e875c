"""Layer responses: how much each 3x3 layer of a trained network puts out (He et al., 2015, figure 7)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from calibration.preprocess import normalize
from rescompile.models.resnet import ResNet
from rescompile.training.data import TrainingData
from rescompile.training.networks import network_with_weights

_IMAGES = 256


def layer_responses(weights: Path, data: TrainingData) -> tuple[float, ...]:
    """Standard deviation of each 3x3 layer's output on test images, in the order of execution.

    Outputs are taken behind the layer's norm, and in pre-activation networks, whose norms stand in front, as they are.
    """
    start = network_with_weights(weights, None, data.classes, new_head=False, seed=0)
    assert isinstance(start.network, ResNet)
    assert start.preprocess is not None
    few = data.test.part(np.arange(len(data.test)) < _IMAGES)
    images = np.concatenate(
        [normalize(b.images, start.preprocess) for b in few.batches(start.preprocess, _IMAGES)]
    )
    found: list[float] = []
    handles = [layer.register_forward_hook(partial(_measure, found)) for layer in _layers(start.network)]
    with torch.inference_mode():
        start.network.eval()(torch.from_numpy(images))
    for handle in handles:
        handle.remove()
    return tuple(found)


def _layers(network: ResNet) -> list[nn.Module]:
    blocks = [block for _, block in network.blocks()]
    behind = not any(block.form.pre_activation for block in blocks)
    pairs = [pair for block in blocks for pair in block.pairs()]
    inner = [bn if behind and bn is not None else conv for conv, bn in pairs if conv.kernel_size == (3, 3)]
    return [network.bn1 if behind else network.conv1, *inner]


def _measure(found: list[float], layer: nn.Module, inputs: object, output: Tensor) -> None:
    found.append(float(output.std()))

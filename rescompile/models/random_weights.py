"""Networks with random weights for timing and tests: any depth, finite logits, the same bits for the same seed.

Convolutions are He-initialized, so that a convolution after a ReLU keeps the variance. Batch-norm statistics are
drawn around those that He weights would give. The last batch norm of a block is scaled by 1 / sqrt(blocks), so that
the variance stays bounded at every depth:

    var(x_{k+1}) ~ var(x_k) (1 + c / n),    var(x_n) ~ var(x_0) (1 + c / n)^n <= var(x_0) e^c
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rescompile.errors import UsageError
from rescompile.models.registry import create
from rescompile.models.resnet import BareProjection, Projection, ResNet
from rescompile.models.specification import ModelSpec

_RELU_GAIN = 2.0
_SHIFT_STD = 0.1


def random_model(spec: ModelSpec, classes: int, seed: int) -> tuple[ResNet, str]:
    """The network of ``spec`` in eval mode, and the SHA-256 over its names and weights.

    Normalized images in, logits of standard deviation about 1 out, at every depth.

    Raises:
        UsageError: ``classes`` is below 1 or ``seed`` is negative.
    """
    if seed < 0:
        raise UsageError(f"a seed cannot be negative ({seed}): pass 0 or more")
    with torch.device("meta"):
        model = create(spec, classes)
    # not to_empty, which imports a library for symbols
    weights = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    fill_randomly(model, seed)
    return model.eval(), weights_sha256(model.state_dict())


def weights_sha256(state_dict: dict[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and values of a state_dict of CPU tensors, in its order."""
    digest = hashlib.sha256()
    for name, tensor in state_dict.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Draw:
    """Random numbers from NumPy, which are the same for every CPU and number of threads."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def normal(self, into: Tensor, std: float) -> None:
        """Fill with values of mean 0."""
        values: NDArray[np.float32] = into.detach().numpy()
        self._generator.standard_normal(dtype=np.float32, out=values)
        values *= np.float32(std)

    def uniform(self, into: Tensor, low: float, high: float) -> None:
        """Fill with values in [low, high)."""
        values: NDArray[np.float32] = into.detach().numpy()
        self._generator.random(dtype=np.float32, out=values)
        values *= np.float32(high - low)
        values += np.float32(low)


def fill_randomly(model: ResNet, seed: int) -> None:
    """Fill all parameters and statistics of ``model``, on the CPU."""
    draw, blocks = _Draw(seed), model.blocks()
    last_scale = 1 / math.sqrt(len(blocks))
    _convolution(model.conv1, draw, gain=1.0)
    _batch_norm(model.bn1, draw, scale=1.0)
    for _, block in blocks:
        pairs = block.pairs()
        for index, (conv, bn) in enumerate(pairs, 1):
            last = index == len(pairs) and block.form.residual
            pre = block.form.pre_activation
            _convolution(conv, draw, gain=_RELU_GAIN * (last_scale**2 if last and pre else 1.0))
            if bn is not None:
                _batch_norm(bn, draw, scale=last_scale if last and not pre else 1.0)
        if isinstance(block.downsample, Projection | BareProjection):
            # the block's input is not normalized, so a gain of 1 keeps its mean square
            _convolution(block.downsample.conv, draw, gain=1.0)
        if isinstance(block.downsample, Projection):
            _batch_norm(block.downsample.bn, draw, scale=1.0)
    if model.norm is not None:
        _batch_norm(model.norm, draw, scale=1.0)
    draw.normal(model.fc.weight, 1 / math.sqrt(model.fc.in_features))
    draw.normal(model.fc.bias, _SHIFT_STD)


def _convolution(conv: nn.Conv2d, draw: _Draw, *, gain: float) -> None:
    draw.normal(conv.weight, math.sqrt(gain / conv.weight[0].numel()))


def _batch_norm(bn: nn.BatchNorm2d, draw: _Draw, *, scale: float) -> None:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    draw.uniform(bn.weight, 0.5 * scale, 1.5 * scale)
    draw.normal(bn.bias, _SHIFT_STD * scale)
    draw.normal(bn.running_mean, _SHIFT_STD)
    draw.uniform(bn.running_var, 0.5, 1.5)
    bn.num_batches_tracked.zero_()

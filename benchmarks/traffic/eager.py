"""Bytes that eager PyTorch moves under AMP: torchvision's forward pass on meta tensors, counted by ``torch_ops``.

Weights are fp32 and cast on the way in, as autocast does once a step; activations are in the given dtype throughout,
and gradients of weights come back in fp32. In inference everything is in the given dtype (``model.half()``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.traffic.footprint import Bytes
from benchmarks.traffic.ours import meta
from benchmarks.traffic.shapes import EPS, BlockShape, ConvShape, NetworkShape
from benchmarks.traffic.torch_ops import TorchOps


@dataclass
class ConvBn:
    """A convolution and its batch norm."""

    shape: ConvShape
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        """bn(conv(x))."""
        conv = self.shape.conv
        y = F.conv2d(x, self.weight.to(x.dtype), stride=conv.stride, padding=conv.padding)
        return F.batch_norm(y, self.mean, self.var, self.gamma, self.beta, training, 0.1, EPS)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that gradients are taken of."""
        return [self.weight, self.gamma, self.beta]


def conv_bn(shape: ConvShape, *, training: bool, dtype: torch.dtype) -> ConvBn:
    """A convolution and its batch norm on the meta device: fp32 parameters for training, otherwise of ``dtype``."""
    own = torch.float32 if training else dtype
    vectors = [meta(shape.k, dtype=own) for _ in range(4)]
    weight = meta(shape.k, shape.c, shape.conv.r, shape.conv.s, dtype=own)
    layer = ConvBn(shape, weight, *vectors)
    for parameter in layer.parameters:
        parameter.requires_grad_(training)
    return layer


def block(shape: BlockShape, n: int, dtype: torch.dtype, *, training: bool) -> Bytes:
    """One residual block: forward, and backward where ``training``."""
    layers = [conv_bn(layer, training=training, dtype=dtype) for layer in shape.layers]
    main = layers[: len(shape.main)]

    def forward(x: Tensor) -> Tensor:
        y = x
        for layer in main[:-1]:
            y = F.relu(layer(y, training=training), inplace=True)
        y = main[-1](y, training=training)
        y += x if shape.projection is None else layers[-1](x, training=training)
        return F.relu(y, inplace=True)

    first = shape.main[0]
    x = meta(n, first.c, first.h, first.w, dtype=dtype).requires_grad_(training)
    return _counted(
        forward, x, [parameter for layer in layers for parameter in layer.parameters], training=training
    )


def stem(network: NetworkShape, n: int, dtype: torch.dtype, *, training: bool) -> Bytes:
    """Convolution, batch norm, ReLU and max pool; the image needs no gradient."""
    shape = network.stem
    layer = conv_bn(shape, training=training, dtype=dtype)
    image = meta(n, shape.c, shape.h, shape.w, dtype=dtype)

    def forward(x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(layer(x, training=training), inplace=True), 3, 2, 1)

    return _counted(forward, image, layer.parameters, training=training)


def head(network: NetworkShape, n: int, dtype: torch.dtype, *, training: bool) -> Bytes:
    """Global average pool and classifier."""
    last = network.last
    own = torch.float32 if training else dtype
    x = meta(n, last.k, *last.plane, dtype=dtype).requires_grad_(training)
    weight = meta(network.classes, last.k, dtype=own).requires_grad_(training)
    bias = meta(network.classes, dtype=own).requires_grad_(training)

    def forward(x: Tensor) -> Tensor:
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), weight.to(x.dtype), bias.to(x.dtype))

    return _counted(forward, x, [weight, bias], training=training)


def _counted(
    forward: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], *, training: bool
) -> Bytes:
    ops = TorchOps()
    with torch.set_grad_enabled(training), ops:
        y = forward(x)
        if training:
            wanted = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
            torch.autograd.grad(y, wanted, torch.empty_like(y))
    return ops.bytes

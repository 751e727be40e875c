"""References of ``ops.passes``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.partials import Partials
from fused_kernels.references.arithmetic import (
    activated,
    batch_norm,
    batch_norm_gradient,
    gradient_sums,
    wide,
)


def activate(y: Tensor, vectors: Tensor) -> Tensor:
    return nhwc(activated(y, vectors))


def join(y: Tensor, vectors: Tensor, shortcut: Tensor, shortcut_vectors: Tensor | None = None) -> Tensor:
    other = wide(shortcut) if shortcut_vectors is None else batch_norm(shortcut, shortcut_vectors)
    return nhwc(F.relu(batch_norm(y, vectors) + other).to(y.dtype))


def entry(
    dz: Tensor,
    z: Tensor,
    y: Tensor,
    vectors: Tensor,
    d: Tensor | None = None,
    d_vectors: Tensor | None = None,
) -> tuple[Tensor, Partials]:
    g = nhwc(torch.where(z > 0, dz, 0.0).to(z.dtype))
    return g, gradient_sums(g, (y, vectors), (d, d_vectors))


def bn_backward(g: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    return nhwc(batch_norm_gradient(g, y, vectors, coefficients).to(g.dtype))

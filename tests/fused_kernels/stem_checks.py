"""The right results of a stem, by float64 autograd of plain PyTorch, and a check for each of its operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import passes, statistics, stem
from tests.fused_kernels.conftest import activation, normal, weight
from tests.fused_kernels.ground_truth import leaf, stored
from tests.fused_kernels.tolerances import SUM, assert_close

IMAGENET, CIFAR = Conv(7, 7, 2, 3), Conv(3, 3, 1, 1)
EPS = 1e-5


@dataclass(frozen=True)
class StemCase:
    """Shapes of one stem: an image [n, c, h, w], k channels out."""

    conv: Conv = IMAGENET
    pool: bool = True
    n: int = 2
    c: int = 3
    k: int = 40
    h: int = 13
    w: int = 11
    dtype: torch.dtype = torch.float32

    @property
    def plane(self) -> tuple[int, int]:
        """Size of the convolution's output."""
        span_h, span_w = self.h + 2 * self.conv.padding, self.w + 2 * self.conv.padding
        return (span_h - self.conv.r) // self.conv.stride + 1, (span_w - self.conv.s) // self.conv.stride + 1

    @property
    def wide(self) -> torch.dtype:
        """The dtype of sums and vectors."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def image(self) -> Tensor:
        """fp32 (fp64), NCHW, as a data loader gives it."""
        return normal(self.n, self.c, self.h, self.w).to(self.wide)

    def weight(self) -> Tensor:
        """[k, c, r, s]."""
        return weight(self.k, self.c, self.conv.r, self.conv.s, self.dtype)

    def dz(self) -> Tensor:
        """Upstream gradient."""
        p, q = self.plane
        return activation(self.n, self.k, *((-(-p // 2), -(-q // 2)) if self.pool else (p, q)), self.dtype)


class Results(NamedTuple):
    """Results of a forward and backward pass."""

    z: Tensor
    dw: Tensor
    dgamma: Tensor
    dbeta: Tensor


def truth(
    case: StemCase, image: Tensor, w: Tensor, affine: Tensor, dz: Tensor, dtype: torch.dtype
) -> Results:
    """conv -> batch norm of the batch -> ReLU (-> max pool), every tensor between them stored as ``dtype``."""
    leaves = w_leaf, gamma, beta = leaf(w), leaf(affine[0]), leaf(affine[1])
    y = F.conv2d(stored(image, dtype), stored(w_leaf, dtype), None, case.conv.stride, case.conv.padding)
    u = F.batch_norm(stored(y, dtype), None, None, gamma, beta, training=True, eps=EPS)
    z = stored(stored(u, dtype).relu(), dtype)
    if case.pool:
        z = stored(F.max_pool2d(z, 3, 2, 1), dtype)
    return Results(z.detach(), *torch.autograd.grad(z, leaves, dz.double()))


def run(case: StemCase, image: Tensor, w: Tensor, affine: Tensor, dz: Tensor) -> Results:
    """Results of the stem computed by this package's operations."""
    gamma, beta = affine
    y, partials, packed = stem.stem_conv_moments(image, w, case.conv)
    vectors, _ = statistics.finalize(partials, gamma, beta, EPS, None, 0.1)
    if case.pool:
        z, index = stem.stem_pool(y, vectors)
        gradient_partials = stem.stem_pool_sums(dz, index, y, vectors)
    else:
        z = passes.activate(y, vectors)
        gradient_partials = stem.stem_activate_sums(dz, y, vectors)
    ((coefficients, dgamma, dbeta),) = statistics.norm_gradients(gradient_partials, [(vectors, False)])
    if case.pool:
        dy = stem.stem_pool_backward(dz, index, y, vectors, coefficients)
    else:
        dy = stem.stem_activate_backward(dz, y, vectors, coefficients)
    return Results(z, stem.stem_wgrad(packed, dy, case.conv, case.c), dgamma, dbeta)


def check_training(case: StemCase) -> None:
    """Forward and backward through batch statistics."""
    image, w, dz = case.image(), case.weight(), case.dz()
    affine = (normal(2, case.k) + torch.tensor([[1.0], [0.5]])).to(case.wide)
    results = run(case, image, w, affine, dz)
    exact, torchs = (truth(case, image, w, affine, dz, dtype) for dtype in (torch.float64, case.dtype))
    assert results.z.dtype == case.dtype
    assert results.dw.dtype == case.wide
    for name in Results._fields:
        mine, right, other = getattr(results, name), getattr(exact, name), getattr(torchs, name)
        assert_close(name, mine, right, torchs=other, dtype=case.dtype)


def vectors_of(scale: Tensor, shift: Tensor, mean: Tensor | None = None) -> Tensor:
    """[4, C] of a batch norm; mean and invstd matter only in backward passes."""
    mean = torch.zeros_like(scale) if mean is None else mean
    return torch.stack([mean, torch.ones_like(scale), scale, shift])


def g_alone(c: int) -> Tensor:
    """Coefficients [3, c] for which dy is g."""
    return torch.stack([torch.ones(c), torch.zeros(c), torch.zeros(c)])


def check_pool(y: Tensor, vectors: Tensor) -> None:
    """z, the places of its maxima and the gradient through them are torch's, to the bit.

    Rows of ``y`` times scales plus shifts must be exact in fp32, and dz here is of small whole numbers.
    """
    z, index = stem.stem_pool(y, vectors)
    u = (y.float() * vectors[2][:, None, None] + vectors[3][:, None, None]).requires_grad_()
    right, flat = F.max_pool2d(u.relu(), 3, 2, 1, return_indices=True)
    assert torch.equal(z.float().nan_to_num(77.0), right.to(y.dtype).float().nan_to_num(77.0))
    rows, columns = torch.meshgrid(*(torch.arange(size) for size in z.shape[2:]), indexing="ij")
    row, column = 2 * rows - 1 + index // 3, 2 * columns - 1 + index % 3
    assert torch.equal(row * y.shape[3] + column, flat)
    dz = (normal(*z.shape) * 3).round().to(y.dtype)
    g = stem.stem_pool_backward(dz, index, y, vectors, g_alone(y.shape[1]))
    partials = stem.stem_pool_sums(dz, index, y, vectors)
    (gradient,) = torch.autograd.grad(right, u, dz.float())
    assert torch.equal(g.float(), gradient)
    centred = y.float() - vectors[0][:, None, None]
    sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * centred).sum((0, 2, 3))])
    assert_close("sums", partials.rows.sum(1), sums.double(), SUM)

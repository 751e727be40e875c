"""One check for each training operation: run it, and compare every result with ``ground_truth``.

Tests of the kernels, of the references and of the mutations all run these: a mutation must fail the same check that
the kernels pass. Everything of ``fused_kernels`` is looked up when a check runs, for mutations replace it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fused_kernels.operands import geometry
from fused_kernels.operands.partials import Partials, moments_dtype
from fused_kernels.ops import convolution, passes, statistics
from tests.fused_kernels import ground_truth
from tests.fused_kernels.conftest import activation, batch_norm_vectors, normal, weight
from tests.fused_kernels.tolerances import SUM, assert_close, assert_variance


@dataclass(frozen=True)
class Case:
    """Shapes of one check: a convolution from [n, c, h, w] to [n, k, p, q], and the activations' dtype."""

    r: int = 3
    s: int = 3
    stride: int = 1
    padding: int = 1
    n: int = 2
    c: int = 20
    k: int = 24
    h: int = 5
    w: int = 5
    dtype: torch.dtype = torch.float32

    @property
    def conv(self) -> geometry.Conv:
        return geometry.Conv(self.r, self.s, self.stride, self.padding)

    @property
    def window(self) -> ground_truth.Window:
        return self.stride, self.padding

    @property
    def wide(self) -> torch.dtype:
        """The dtype of sums and vectors."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def x(self, *, std: float = 1.0) -> Tensor:
        """[n, c, h, w]."""
        return activation(self.n, self.c, self.h, self.w, self.dtype, std=std)

    def shortcut(self, stride: int) -> Tensor:
        """Gradient that a shortcut of ``stride`` brings to [n, c, h, w]."""
        return activation(self.n, self.c, -(-self.h // stride), -(-self.w // stride), self.dtype)

    def dy(self) -> Tensor:
        """[n, k, p, q]."""
        p = (self.h + 2 * self.padding - self.r) // self.stride + 1
        q = (self.w + 2 * self.padding - self.s) // self.stride + 1
        return activation(self.n, self.k, p, q, self.dtype)

    def weight(self) -> Tensor:
        """[k, c, r, s]."""
        return weight(self.k, self.c, self.r, self.s, self.dtype)

    def vectors(self) -> Tensor:
        """[4, c] of the batch norm on x."""
        return batch_norm_vectors(self.c).to(self.wide)


def assert_activation(name: str, result: Tensor, truth: Tensor, torchs: Tensor, case: Case) -> None:
    """Values as the table wants them, the case's dtype, NHWC memory."""
    assert result.dtype == case.dtype, f"{name} is {result.dtype}"
    assert result.is_contiguous(memory_format=torch.channels_last), f"{name} is not NHWC"
    assert_close(name, result, truth, torchs=torchs)


def assert_moments(partials: Partials, y: Tensor) -> None:
    """Every tile's mean and M2 are those of its own pixels of ``y``, as stored."""
    truth = ground_truth.tile_moments(y, partials.per_tile)
    sizes = ground_truth.tile_moments(y.abs(), partials.per_tile)
    assert partials.count == y.numel() // y.shape[1]
    dtype = (
        torch.float64 if y.dtype == torch.float64 else torch.float32
    )  # of the sums, however they are stored
    assert_close("tile means", partials.rows[0], truth[0], SUM, scale=sizes[0], dtype=dtype)
    assert_close("tile M2", partials.rows[1], truth[1], SUM, dtype=dtype)


def assert_sums(partials: Partials, g: Tensor, *outputs: tuple[Tensor, Tensor]) -> None:
    """All tiles together are the sums over ``g`` as stored."""
    truth, sizes = ground_truth.gradient_sums(g, *((y, vectors[0]) for y, vectors in outputs))
    assert partials.count == g.numel() // g.shape[1]
    assert partials.rows.shape[0] == len(truth), f"{partials.rows.shape[0]} kinds of sums"
    for kind, total in enumerate(partials.rows.double().sum(1)):
        row = total.to(partials.rows.dtype)
        assert_close(f"sum {kind}", row, truth[kind], SUM, scale=sizes[kind])


def check_conv_moments(case: Case, *, prologue: bool = True) -> None:
    x, w, vectors = case.x(), case.weight(), case.vectors() if prologue else None
    y, partials = convolution.conv_moments(x, w, case.conv, vectors)
    truth, torchs = (
        ground_truth.conv(x, w, case.window, vectors, dtype) for dtype in (torch.float64, case.dtype)
    )
    assert_activation("y", y, truth, torchs, case)
    assert_moments(partials, y)


def check_conv_plain(case: Case, *, prologue: bool = True) -> None:
    x, w, vectors = case.x(), case.weight(), case.vectors() if prologue else None
    y = convolution.conv_plain(x, w, case.conv, vectors)
    truth, torchs = (
        ground_truth.conv(x, w, case.window, vectors, dtype) for dtype in (torch.float64, case.dtype)
    )
    assert_activation("y", y, truth, torchs, case)


def check_dgrad_drelu(case: Case) -> None:
    dy, w, y, vectors = case.dy(), case.weight(), case.x(), case.vectors()
    g, partials = convolution.dgrad_drelu(dy, w, case.conv, y, vectors)
    truth, torchs = (
        ground_truth.gradient_before_relu(dy, w, case.window, y, vectors, dtype)
        for dtype in (torch.float64, case.dtype)
    )
    assert_activation("g", g, truth, torchs, case)
    assert_sums(partials, g, (y, vectors))


def check_closed_relu(case: Case) -> None:
    """torch's ReLU lets no gradient through where bn(y) or z is exactly 0, as in dead channels."""
    zero, dy, w, vectors = torch.zeros_like(case.x()), case.dy(), case.weight(), case.vectors()
    vectors[3] = 0.0
    shortcut = torch.ones_like(zero)
    for g, partials in (
        convolution.dgrad_drelu(dy, w, case.conv, zero, vectors),
        convolution.dgrad_drelu(dy, w, case.conv, -zero, vectors),
        convolution.dgrad_block(dy, w, case.conv, shortcut, 1, zero, case.x(), vectors),
        passes.entry(shortcut, zero, case.x(), vectors),
    ):
        assert g.count_nonzero() == 0, "gradient passes a closed ReLU"
        assert partials.rows.count_nonzero() == 0


def check_dgrad_block(case: Case, *, stride: int = 1, projection: bool = False) -> None:
    dy, w, shortcut = case.dy(), case.weight(), case.shortcut(stride)
    z, y, vectors = case.x().relu(), case.x(), case.vectors()
    d, d_vectors = (case.x(), case.vectors()) if projection else (None, None)
    g, partials = convolution.dgrad_block(dy, w, case.conv, shortcut, stride, z, y, vectors, d, d_vectors)
    truth, torchs = (
        ground_truth.gradient_of_block(dy, w, case.window, shortcut, stride, z, dtype)
        for dtype in (torch.float64, case.dtype)
    )
    assert_activation("g", g, truth, torchs, case)
    assert_sums(
        partials, g, (y, vectors), *([(d, d_vectors)] if d is not None and d_vectors is not None else [])
    )


def check_dgrad_shortcut(case: Case, *, stride: int | None = 1) -> None:
    dy, w, x = case.dy(), case.weight(), case.x()
    shortcut = None if stride is None else case.shortcut(stride)
    dx = convolution.dgrad_shortcut(dy, w, case.conv, x.shape, shortcut, stride or 1)
    truth, torchs = (
        ground_truth.gradient_of_input(dy, w, case.window, x, shortcut, stride or 1, dtype)
        for dtype in (torch.float64, case.dtype)
    )
    assert_activation("dx", dx, truth, torchs, case)


def check_wgrad(case: Case, *, prologue: bool = True) -> None:
    x, dy, vectors = case.x(), case.dy(), case.vectors() if prologue else None
    dw = convolution.wgrad(x, dy, case.conv, vectors)
    size = (case.k, case.c, case.r, case.s)
    truth, torchs = (
        ground_truth.gradient_of_weight(x, dy, size, case.window, vectors, dtype)
        for dtype in (torch.float64, case.dtype)
    )
    assert dw.dtype == case.wide
    assert_close("dw", dw, truth, torchs=torchs, dtype=case.dtype)


def check_wgrad_and_dy(case: Case, *, prologue: bool = True) -> None:
    """Both results have the bits of the two passes that it stands for."""
    x, g, y = case.x(), case.dy(), case.dy()
    vectors = case.vectors() if prologue else None
    y_vectors, coefficients = batch_norm_vectors(case.k).to(case.wide), normal(3, case.k).to(case.wide)
    upstream = g, y, y_vectors, coefficients
    dw, dy = convolution.wgrad_and_dy(x, *upstream, case.conv, vectors)
    expected = passes.bn_backward(*upstream)
    assert torch.equal(dy, expected), "dy is off"
    assert torch.equal(dw, convolution.wgrad(x, expected, case.conv, vectors)), "dw is off"


def check_join(case: Case, *, projection: bool = False) -> None:
    y, vectors, shortcut = case.x(), case.vectors(), case.x()
    shortcut_vectors = case.vectors() if projection else None
    z = passes.join(y, vectors, shortcut, shortcut_vectors)
    truth, torchs = (
        ground_truth.join(y, vectors, shortcut, shortcut_vectors, dtype)
        for dtype in (torch.float64, case.dtype)
    )
    assert_activation("z", z, truth, torchs, case)


def check_entry(case: Case, *, projection: bool = False) -> None:
    dz, z, y, vectors = case.x(), case.x().relu(), case.x(), case.vectors()
    d, d_vectors = (case.x(), case.vectors()) if projection else (None, None)
    g, partials = passes.entry(dz, z, y, vectors, d, d_vectors)
    u = ground_truth.leaf(z)
    (truth,) = torch.autograd.grad(u.relu(), u, dz.double())
    assert torch.equal(g.double(), truth), "g is dz or nothing"
    assert g.dtype == case.dtype
    assert g.is_contiguous(memory_format=torch.channels_last)
    assert_sums(
        partials, g, (y, vectors), *([(d, d_vectors)] if d is not None and d_vectors is not None else [])
    )


def check_batch_norm_backward(case: Case, *, frozen: bool = False, eps: float = 1e-3) -> None:
    """``coefficients`` and ``bn_backward`` together give the gradient of torch's batch norm."""
    y, g = case.x(std=2.0), case.x()
    gamma, beta = normal(case.c).to(case.wide), normal(case.c).to(case.wide)
    mean, variance = (
        (normal(case.c).double(), normal(case.c).double().abs()) if frozen else ground_truth.moments(y)
    )
    invstd = (variance + eps).rsqrt()
    scale = gamma.double() * invstd
    vectors = torch.stack([mean, invstd, scale, beta.double() - mean * scale]).to(case.wide)
    sums = ground_truth.gradient_sums(g, (y, mean))[0].to(case.wide)
    partials = Partials(sums[:, None], case.n * case.h * case.w, case.n * case.h * case.w)
    (norm,) = statistics.norm_gradients(partials, [(vectors, frozen)])
    dy = passes.bn_backward(g, y, vectors, norm.coefficients)
    running = (mean, variance) if frozen else None
    truth = ground_truth.gradients_of_batch_norm(g, y, gamma, beta, eps, running).y
    assert_activation("dy", dy, truth, truth.to(case.dtype), case)


def partials_of(y: Tensor, per_tile: int) -> Partials:
    """The partials that an epilogue writes for ``y`` with ``per_tile`` rows to a tile."""
    rows = ground_truth.tile_moments(y, per_tile).to(moments_dtype(y.dtype))
    return Partials(rows, per_tile, y.numel() // y.shape[1])


def check_finalize(y: Tensor, partials: Partials, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
    """Vectors against NumPy, running statistics against torch's own batch norm."""
    c, dtype = y.shape[1], torch.float64 if y.dtype == torch.float64 else torch.float32
    norm = torch.nn.BatchNorm2d(c, eps, momentum, dtype=torch.float64).train()
    for parameter in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert parameter is not None
        parameter.data.copy_(normal(c).abs() + 0.5)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    running = (norm.running_mean.to(dtype, copy=True), norm.running_var.to(dtype, copy=True))
    gamma, beta = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
    before = [tensor.clone() for tensor in running]
    vectors, new = statistics.finalize(partials, gamma, beta, eps, running, momentum)
    norm(y.double())
    mean, variance = ground_truth.moments(y)
    assert new is not None
    assert_variance("1 / invstd^2", vectors[1].double().pow(-2).to(dtype), variance + eps)
    scale = norm.weight.detach() * (variance + eps).rsqrt()
    truth = torch.stack([mean, (variance + eps).rsqrt(), scale, norm.bias.detach() - mean * scale])
    for name, row, expected in zip(("mean", "invstd", "scale", "shift"), vectors, truth, strict=True):
        assert_close(name, row, expected, SUM)
    assert_close("running mean", new[0], norm.running_mean, SUM)
    assert_close("running variance", new[1], norm.running_var, SUM)
    assert all(torch.equal(a, b) for a, b in zip(before, running, strict=True)), (
        "finalize must not write its inputs"
    )


def check_merge(y: Tensor, partials: Partials) -> None:
    """Mean and variance of the whole against NumPy."""
    merged = statistics.merge(partials)
    assert merged.dtype == torch.float64
    mean, m2 = merged.to(partials.rows.dtype)
    truth_mean, truth_variance = ground_truth.moments(y)
    assert_close("mean", mean, truth_mean, SUM, scale=ground_truth.moments(y.abs())[0])
    count = y.numel() // y.shape[1]
    assert_variance("M2 / count", m2 / count, truth_variance)


def check_frozen(c: int, *, eps: float = 1e-5, dtype: torch.dtype = torch.float32) -> None:
    """The vectors of running statistics make torch's eval batch norm."""
    norm = torch.nn.BatchNorm2d(c, eps, dtype=torch.float64).eval()
    mean, variance = normal(c).to(dtype), (normal(c).abs() + 0.01).to(dtype)
    gamma, beta = normal(c).to(dtype), normal(c).to(dtype)
    vectors = statistics.frozen((mean, variance), gamma, beta, eps)
    pairs = ((norm.running_mean, mean), (norm.running_var, variance), (norm.weight, gamma), (norm.bias, beta))
    for theirs, ours in pairs:
        assert theirs is not None
        theirs.data.copy_(ours)
    x = activation(2, c, 3, 3).double()
    by_vectors = ground_truth.affine(x, vectors, torch.float64)
    assert_close("bn(x)", by_vectors.to(dtype), norm(x).detach(), SUM)
    assert_close("mean", vectors[0], mean.double(), SUM)
    assert_close("invstd", vectors[1], (variance.double() + eps).rsqrt(), SUM)


def check_sums(kinds: int, tiles: int, c: int, *, dtype: torch.dtype = torch.float32) -> None:
    """Each kind's total over all tiles."""
    rows = normal(kinds, tiles, c).to(dtype)
    totals = statistics.sums(Partials(rows, 32, 32 * tiles))
    assert_close("totals", totals, rows.double().sum(1), SUM, scale=rows.double().abs().sum(1))

"""Fixtures of all kernel tests: watched and poisoned memory, seeded tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.utils import deterministic

from fused_kernels.candidates import fit
from fused_kernels.choice import choosing
from fused_kernels.launch import implementation
from fused_kernels.operands.layout import nhwc
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile
from tests.fused_kernels.sanitizer import sanitized

HAS_TRITON = find_spec("triton") is not None
SMALL = Tile(32, 32, 32, splits=2)
"""Several tiles each way on tensors of 33 and more; the interpreter pays for programs, not for elements."""

_generator = torch.Generator()


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Skip, with the reason, where the kernels cannot be imported."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed: pip install 'rescompile[triton]'")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Every ``torch.empty`` is full of NaN (127 in int8), so that an element which a kernel forgets is seen."""
    was, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(was, warn_only=warned)
    deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """Every access of every kernel lies in its tensors, and writes only what its launch marks as written."""
    with sanitized() if HAS_TRITON else nullcontext():
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random tensors whichever tests ran before, for ``activation`` and for torch's own generator."""
    reseed(0)


def reseed(seed: int) -> None:
    """Start the random tensors again; hypothesis tests call it in each example."""
    _generator.manual_seed(seed)
    torch.manual_seed(seed)


@pytest.fixture
def small_tiles() -> Iterator[Tile]:
    """Every convolution takes ``SMALL`` tiles."""
    with tiles(SMALL):
        yield SMALL


def tiles(tile: Tile) -> AbstractContextManager[None]:
    """Every convolution in this context takes ``tile``."""
    return choosing(lambda _: tile)


def fitting(problem: Problem) -> Tile:
    """A tile for ``choosing`` that wastes little: few programs, and products take the time of their padded size."""
    return Tile(fit(problem.rows, 256), fit(problem.cols, 64), fit(problem.depth, 64))


def kernels() -> AbstractContextManager[None]:
    """Every operation in this context runs its kernels, in the interpreter."""
    return implementation("kernels")


def reference() -> AbstractContextManager[None]:
    """Every operation in this context runs its reference in plain PyTorch."""
    return implementation("reference")


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Seeded normal numbers, fp32."""
    return torch.randn(*shape, generator=_generator) * std + mean


def activation(
    n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32, *, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """A seeded random activation [n, c, h, w] in NHWC memory."""
    return nhwc(normal(n, c, h, w, mean=mean, std=std).to(dtype))


def weight(k: int, c: int, r: int, s: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A seeded random weight [k, c, r, s] in KRSC memory, scaled so that outputs are about 1."""
    return nhwc((normal(k, c, r, s) / (c * r * s) ** 0.5).to(dtype))


def batch_norm_vectors(c: int) -> Tensor:
    """fp32 [4, c] of some batch norm: mean, invstd, scale, shift, with scales of both signs."""
    mean, invstd, gamma, beta = normal(c), normal(c).abs() + 0.5, normal(c), normal(c)
    return torch.stack([mean, invstd, gamma * invstd, beta - mean * gamma * invstd])

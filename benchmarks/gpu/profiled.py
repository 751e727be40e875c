"""One step under a profiler or sanitizer: ``python -m benchmarks.gpu.profiled NAME``; the names are those of ``STEPS``.

Each kernel runs three times: the first run compiles it, and ncu is told to look at the last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.networks import TINY
from benchmarks.gpu.workloads import Setting, Workload, programs
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution

BATCH = 256
RUNS = 3


def main(name: str) -> None:
    """Run one step."""
    step = STEPS[name]()
    for _ in range(RUNS):
        step()
    torch.cuda.synchronize()


def activation(c: int, side: int) -> Tensor:
    """A seeded activation in bf16 and NHWC memory."""
    torch.manual_seed(c)
    x = torch.randn(BATCH, side, side, c, device="cuda", dtype=torch.bfloat16)
    return x.permute(0, 3, 1, 2)


def weight(k: int, c: int, window: int) -> Tensor:
    """A seeded weight in bf16."""
    torch.manual_seed(k)
    w = torch.randn(k, c, window, window, device="cuda", dtype=torch.bfloat16) / (c * window * window) ** 0.5
    found: Tensor = w.contiguous(memory_format=torch.channels_last)
    return found


def batch_norm(c: int) -> Tensor:
    """Vectors of a batch norm that changes little."""
    return torch.tensor([0.0, 1.0, 1.0, 0.1], device="cuda")[:, None].expand(4, c).contiguous()


def _moments() -> Callable[[], Any]:
    x, w, vectors = activation(64, 56), weight(256, 64, 1), batch_norm(64)
    return lambda: convolution.conv_moments(x, w, Conv(1, 1), vectors)


def _window() -> Callable[[], Any]:
    x, w, vectors = activation(128, 28), weight(128, 128, 3), batch_norm(128)
    return lambda: convolution.conv_moments(x, w, Conv(3, 3, 1, 1), vectors)


def _wgrad() -> Callable[[], Any]:
    x, dy, vectors = activation(128, 28), activation(128, 28), batch_norm(128)
    return lambda: convolution.wgrad(x, dy, Conv(3, 3, 1, 1), vectors)


def _block_gradient() -> Callable[[], Any]:
    z, dy, w, vectors = activation(256, 56), activation(64, 56), weight(64, 256, 1), batch_norm(256)
    return lambda: convolution.dgrad_block(dy, w, Conv(1, 1), z, 1, z, z, vectors)


def _small_block() -> Callable[[], Any]:
    setting = Setting(torch.device("cuda"), TINY)
    return programs(Workload("block", 4, "layer1.0"), setting, "ours").steps["both"]


STEPS: dict[str, Callable[[], Callable[[], Any]]] = {
    "moments-64-256": _moments,
    "3x3-bn-relu-128": _window,
    "wgrad-bn-relu-128": _wgrad,
    "block-gradient-256": _block_gradient,
    "small-block": _small_block,
}

if __name__ == "__main__":
    main(sys.argv[1])

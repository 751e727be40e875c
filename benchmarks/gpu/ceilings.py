"""The best rates of the device, measured in the same run: every other figure is compared with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.timing import contender, race
from fused_kernels.tune.timing import first_line

SECONDS = 1.0


@dataclass(frozen=True)
class Ceilings:
    """Rates of the device."""

    bytes_per_second: float
    """Bytes read and written per second by a large copy."""
    flops: float
    """Operations per second in a large product of 16-bit random matrices."""
    int8_ops: float
    launch_gap_ms: float | None
    """Time from one empty kernel to the next within a CUDA graph."""
    notes: tuple[str, ...]

    def floor_ms(self, flops: float, moved: float, *, int8: bool = False) -> float:
        """The time that arithmetic or memory needs, whichever is longer."""
        return 1e3 * max(flops / (self.int8_ops if int8 else self.flops), moved / self.bytes_per_second)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, in readable units."""
        return {
            "copy_gb_per_s": self.bytes_per_second / 1e9,
            "bf16_tflop_per_s": self.flops / 1e12,
            "int8_top_per_s": self.int8_ops / 1e12,
            "graph_launch_gap_us": None if self.launch_gap_ms is None else 1e3 * self.launch_gap_ms,
            "notes": list(self.notes),
        }


def measure(device: torch.device, *, tiny: bool) -> Ceilings:
    """Copy bandwidth, matrix rates and the gap between launches."""
    notes: list[str] = []
    size = 64 if tiny else 8192
    bandwidth = _copy_rate(device, 2**14 if tiny else 2**30)
    flops = _product_rate(device, size)
    try:
        ops = _int8_rate(device, size)
    except RuntimeError as error:
        ops = 2 * flops
        notes.append(f"the int8 rate is assumed to be twice that of bf16: {first_line(error)}")
    return Ceilings(bandwidth, flops, ops, _launch_gap(device), tuple(notes))


def _copy_rate(device: torch.device, numbers: int) -> float:
    source = torch.randn(numbers, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    moved = 2.0 * source.numel() * source.element_size()
    return moved / _seconds(lambda: target.copy_(source), device)


def _product_rate(device: torch.device, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / _seconds(lambda: a @ b, device)


def _int8_rate(device: torch.device, size: int) -> float:
    x, w = (torch.randint(-128, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    w = w.t()  # cuBLAS multiplies int8 by columns alone
    return 2.0 * size**3 / _seconds(lambda: torch._int_mm(x, w), device)


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    return race({"it": contender(step, device)}, seconds=SECONDS)["it"].median / 1e3


def _launch_gap(device: torch.device, launches: int = 200) -> float | None:
    """Milliseconds a launch of a kernel that has nothing to do."""
    if device.type != "cuda":
        return None
    one = torch.zeros(1, device=device)

    def step() -> None:
        for _ in range(launches):
            one.add_(1)

    return race({"it": contender(step, device)}, seconds=SECONDS)["it"].median / launches

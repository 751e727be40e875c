"""GPUs that the model knows: their rates, each with where it is published, until a visit has measured it.

Rates of memory and tensor cores are what programs reach, not what data sheets promise; where only the latter is known,
the source says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.ceilings import Ceilings

WHITEPAPER = "NVIDIA H100 Tensor Core GPU Architecture, whitepaper V1.04, H100 SXM5"
GUIDE = "CUDA C++ Programming Guide, technical specifications of compute capability 9.0"


@dataclass(frozen=True)
class Rate:
    """One figure and its source."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Device:
    """One kind of GPU: its limits and rates, all in units of seconds, bytes and operations."""

    capability: int
    processors: Rate
    clock: Rate
    memory: Rate
    """Bytes read and written."""
    cache: Rate
    """Bytes that the processors read from the L2 cache."""
    tensor: Rate
    """Dense products of 16 bits."""
    int8: Rate
    latency: Rate
    """Time from a load to its value, where no cache has it."""
    gap: Rate
    """Time between two launches of a CUDA graph in which nothing runs."""
    registers: Rate
    shared: Rate
    threads: Rate
    schedulers: Rate
    """Instructions that a processor issues in a clock."""

    @property
    def rates(self) -> dict[str, Rate]:
        """Every figure by its name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Rate)}

    @property
    def ceilings(self) -> Ceilings:
        """The rates that a floor is computed from."""
        return Ceilings(self.memory.value, self.tensor.value, self.int8.value, self.gap.value * 1e3, ())


_H100 = Device(
    90,
    processors=Rate(132, "", WHITEPAPER),
    clock=Rate(1.755e9, "Hz", "highest clock of an H100 PCIe, Chips and Cheese, 2 July 2023"),
    memory=Rate(2.903e12, "bytes/s", "github.com/aigatech/vpbenchmarking, measured, copies on an H100 SXM5"),
    cache=Rate(
        5_120 * 1.755e9,
        "bytes/s",
        "5,120 bytes a clock by the NVIDIA A100 whitepaper; for the H100 nothing is published",
    ),
    tensor=Rate(780e12, "flop/s", "gist.github.com/Chillee/2ec89696db8b7ed1c24461159e325405, measured, bf16"),
    int8=Rate(1_560e12, "op/s", f"twice the rate of bf16, as in the {WHITEPAPER}"),
    latency=Rate(
        478.8 / 1.755e9, "s", "478.8 clocks, Luo et al., arXiv:2402.13499, global memory of the H100"
    ),
    gap=Rate(0.5e-6, "s", "NVIDIA blog, Getting Started with CUDA Graphs: 3.4 us a kernel of 2.9 us (V100)"),
    registers=Rate(65_536, "", GUIDE),
    shared=Rate(233_472, "bytes", GUIDE),
    threads=Rate(2_048, "", GUIDE),
    schedulers=Rate(4, "", WHITEPAPER),
)
DEVICES = {
    "h100": _H100,
    "h200": replace(
        _H100,
        memory=Rate(4.16e12, "bytes/s", "0.867 of the 4.8e12 of NVIDIA's data sheet: the share of the H100"),
    ),
}


def measured(device: Device, path: Path) -> Device:
    """``device`` with what a visit's report measured in place of what is published.

    Raises:
        ValueError: the file is not a report with ceilings.
    """
    try:
        body: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found = body["ceilings"]
        source = f"measured on {body['environment']['date'][:10]}, {path.name}"
        rates = {
            "memory": replace(device.memory, value=1e9 * found["copy_gb_per_s"], source=source),
            "tensor": replace(device.tensor, value=1e12 * found["bf16_tflop_per_s"], source=source),
            "int8": replace(device.int8, value=1e12 * found["int8_top_per_s"], source=source),
        }
        if (gap := found["graph_launch_gap_us"]) is not None:
            rates["gap"] = replace(device.gap, value=1e-6 * gap, source=source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a report with measured ceilings ({error!r})") from None
    return replace(device, **rates)  # type: ignore[arg-type]

"""A model of a network's time on a GPU, from recorded launches and compiled kernels; no GPU is needed.

The time of one launch is the largest of three: its bytes over the bandwidth, its multiplications over the tensor cores'
rate, and the instructions that its warps issue over the processors' issue slots. Instructions are read from the machine
code: a loop's count as often as the launch's own numbers say, everything else once. Latency, cache misses and waiting
are not in the model, so that a measured time is longer. It says what to improve next, not what a user will see.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from math import prod

from benchmarks.compiled_kernels.sass import listing_of, registers_of
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.launches import flops_of, is_int8
from benchmarks.traffic.footprint import bytes_of
from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant, variant_of
from fused_kernels.launch import Functor, Launch
from fused_kernels.operands.geometry import ceil_div

WARP = 32
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.MULTILINE
)
_TARGET = re.compile(r"0x([0-9a-f]+)")


@dataclass(frozen=True)
class Device:
    """One kind of GPU: its limits and rates."""

    capability: int
    processors: int
    clock: float
    ceilings: Ceilings
    registers: int = 65_536
    shared: int = 233_472
    threads: int = 2_048
    schedulers: int = 4


# bandwidths and dense product rates that large copies and products are known to reach; not measured by this project
DEVICES = {
    "h100": Device(90, 132, 1.755e9, Ceilings(3.0e12, 798e12, 1_596e12, None, ())),
    "h200": Device(90, 132, 1.755e9, Ceilings(4.3e12, 798e12, 1_596e12, None, ())),
}


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one variant shows."""

    registers: int
    shared: int
    threads: int
    once: int
    """Instructions outside of loops."""
    loop: int
    """Instructions of the longest innermost loop, 0 if there is none."""

    def resident(self, device: Device) -> int:
        """Programs that fit on a processor together."""
        by_registers = device.registers // (ceil_div(self.registers, 8) * 8 * self.threads)
        by_shared = device.shared // (self.shared + 1_024)
        return max(1, min(by_registers, by_shared, device.threads // self.threads))


@dataclass(frozen=True)
class Predicted:
    """The parts of one launch's time, in ms."""

    launch: Launch
    compiled: Compiled
    memory: float
    tensor: float
    issue: float

    @property
    def ms(self) -> float:
        """The largest part."""
        return max(self.memory, self.tensor, self.issue)

    @property
    def floor(self) -> float:
        """The same without instructions."""
        return max(self.memory, self.tensor)

    @property
    def name(self) -> str:
        """Kernel, prologue and epilogue."""
        parts = [self.launch.kernel.split(".")[1].removesuffix("_kernel")]
        for key in ("PROLOGUE", "EPILOGUE"):
            if isinstance(functor := self.launch.arguments.get(key), Functor):
                parts.append(functor.name.split(".")[1])
        return " ".join(parts)


def predict(launches: Sequence[Launch], device: Device, jobs: int) -> list[Predicted]:
    """The prediction of every launch, in order; each kernel is compiled once."""
    variants = [variant_of(launch) for launch in launches]
    compiled = dict(_compiled(set(variants), device, jobs))
    return [
        _predicted(launch, compiled[variant], device)
        for launch, variant in zip(launches, variants, strict=True)
    ]


def _compiled(variants: Iterable[Variant], device: Device, jobs: int) -> Iterator[tuple[Variant, Compiled]]:
    with CompilePool(jobs) as pool:
        futures: dict[Variant, Future[Code]] = {v: pool.submit(v, device.capability) for v in variants}
        for variant, future in futures.items():
            code = future.result()
            if code.error:
                raise RuntimeError(f"{variant.kernel} does not compile: {code.error}")
            once, loop = instructions(listing_of(code.cubin, device.capability))
            yield variant, Compiled(registers_of(code.cubin), code.shared_bytes, code.threads, once, loop)


def instructions(listing: str) -> tuple[int, int]:
    """Instructions outside of the largest innermost loop, and in it, from nvdisasm's listing of one kernel."""
    found = [(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(listing) if name != "NOP"]
    loops = [
        (int(target[1], 16), at)
        for at, name, rest in found
        if name.startswith("BRA") and (target := _TARGET.search(rest)) and int(target[1], 16) < at
    ]
    inner = [
        (first, last)
        for first, last in loops
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops)
    ]
    sizes = [sum(first <= at <= last for at, _, _ in found) for first, last in inner]
    loop = max(sizes, default=0)
    return len(found) - loop, loop


def trips(launch: Launch) -> int:
    """How often a program of ``launch`` runs through its innermost loop."""
    a = launch.arguments
    if launch.kernel == "conv.conv_kernel":
        return int(a["TAPS_H"] * a["TAPS_W"] * ceil_div(a["DEPTH"], a["BLOCK_K"]))
    return int(a.get("STEPS", 1))


def _predicted(launch: Launch, compiled: Compiled, device: Device) -> Predicted:
    ceilings = device.ceilings
    rate = ceilings.int8_ops if is_int8(launch) else ceilings.flops
    issued = prod(launch.grid) * compiled.threads / WARP * (compiled.once + trips(launch) * compiled.loop)
    slots = device.processors * device.schedulers * device.clock
    moved = sum(bytes_of(launch).values())
    return Predicted(
        launch,
        compiled,
        1e3 * moved / ceilings.bytes_per_second,
        1e3 * flops_of(launch) / rate,
        1e3 * issued / slots,
    )


def as_text(predicted: Sequence[Predicted], device: Device) -> str:
    """A line for each kind of kernel, the slowest first, and the sums."""
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for one in predicted:
        groups[one.name].append(one)
    titles = (("launches", 9), ("model ms", 10), ("floor ms", 10), ("issue ms", 10), ("registers", 11))
    columns = "".join(f"{title:>{width}}" for title, width in titles)
    header = f"{'kernel':38}{columns}{'a processor':>13}"
    lines = ["a model, not a measurement: bytes, products and instructions, without latency", header]
    for name, ones in sorted(groups.items(), key=lambda item: -sum(one.ms for one in item[1])):
        most = max(one.compiled.registers for one in ones)
        fewest = min(one.compiled.resident(device) for one in ones)
        ms, floor, issue = (sum(getattr(one, part) for one in ones) for part in ("ms", "floor", "issue"))
        lines.append(f"{name:38}{len(ones):9}{ms:10.3f}{floor:10.3f}{issue:10.3f}{most:11}{fewest:13}")
    ms, floor = (sum(getattr(one, part) for one in predicted) for part in ("ms", "floor"))
    lines.append(f"{'all':38}{len(predicted):9}{ms:10.3f}{floor:10.3f}")
    alone = sum(one.compiled.resident(device) == 1 for one in predicted)
    return "\n".join([*lines, f"{alone} of {len(predicted)} launches fit a processor once"])

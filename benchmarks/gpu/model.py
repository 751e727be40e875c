"""A model of a network's time on a GPU, from recorded launches and compiled kernels; no GPU is needed.

A launch takes its work, or the time that its programs wait for memory, whichever is longer:

    work    the longest of four: bytes over the memory's bandwidth; bytes that programs load over the cache's; products
            over the tensor cores' rate; instructions over the processors' issue slots. The last two are those of the
            busiest processor, so that a last wave which fills few processors costs a whole one.
    waits   programs run in waves of as many as fit the GPU. In each, a program waits once for every group of loads
            outside of its loop, and once a round of its loop; in a pipelined loop once for as many rounds as it is
            ahead. Programs that share a processor work while others wait. One that has a processor to itself adds its
            waits and its instructions outside of the loop to its work: nothing is multiplied meanwhile.

To these come the gap between launches and the first program's waits. Instructions are read from the machine code: a
loop's count as often as the launch's own numbers say, everything else once. Bank conflicts, power limits, misses of the
instruction cache and writes that the L2 cache absorbs are not in the model. It says what to improve next; what a user
will see is for a measurement to say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from math import ceil, prod

from benchmarks.compiled_kernels.sass import listing_of, registers_of
from benchmarks.gpu.devices import Device
from benchmarks.gpu.launches import flops_of, is_int8
from benchmarks.gpu.machine_code import Instructions, instructions
from benchmarks.traffic.footprint import bytes_of
from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant, variant_of
from fused_kernels.launch import Functor, Launch
from fused_kernels.operands.geometry import ceil_div

WARP = 32
RESERVED = 1_024
"""Bytes of shared memory that every program takes beside its own."""
REGISTERS_AT_A_TIME = 8


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one variant shows."""

    registers: int
    shared: int
    threads: int
    code: Instructions

    def resident(self, device: Device) -> int:
        """Programs that fit on a processor together."""
        registers = ceil_div(self.registers, REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME * self.threads
        fit = (
            device.registers.value // registers,
            device.shared.value // (self.shared + RESERVED),
            device.threads.value // self.threads,
        )
        return max(1, int(min(fit)))


@dataclass(frozen=True)
class Predicted:
    """The parts of one launch's time, in ms."""

    launch: Launch
    resident: int
    """Programs that fit on a processor together."""
    registers: int
    loop: int
    """Instructions of the longest innermost loop."""
    memory: float
    cache: float
    tensor: float
    issue: float
    waits: float
    """Waits in loops, of all waves; and outside of them where programs share a processor."""
    alone: float
    """What nothing overlaps: the first program's waits; where one fills a processor, all that is outside of loops."""
    gap: float

    @property
    def ms(self) -> float:
        """The whole."""
        return self.gap + self.alone + max(self.work, self.waits)

    @property
    def work(self) -> float:
        """The longest of the four kinds of work."""
        return max(self.memory, self.cache, self.tensor, self.issue)

    @property
    def name(self) -> str:
        """Kernel, prologue and epilogue."""
        parts = [self.launch.kernel.split(".")[1].removesuffix("_kernel")]
        for key in ("PROLOGUE", "EPILOGUE"):
            if isinstance(functor := self.launch.arguments.get(key), Functor):
                parts.append(functor.name.split(".")[1])
        return " ".join([*parts, *(["dy"] if self.launch.arguments.get("norm_args") is not None else [])])

    @property
    def bound(self) -> str:
        """What takes the longest."""
        kinds = ("memory", "cache", "tensor", "issue", "waits")
        return max(kinds, key=lambda kind: float(getattr(self, kind)))


def predict(launches: Sequence[Launch], device: Device, jobs: int) -> list[Predicted]:
    """The prediction of every launch, in order; each kernel is compiled once."""
    variants = [variant_of(launch) for launch in launches]
    compiled = dict(_compiled(dict.fromkeys(variants), device, jobs))
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
            yield variant, read(code, device.capability)


def read(code: Code, capability: int) -> Compiled:
    """What the model needs of a compilation."""
    found = instructions(listing_of(code.cubin, capability))
    return Compiled(registers_of(code.cubin), code.shared_bytes, code.threads, found)


def trips(launch: Launch) -> int:
    """How often a program of ``launch`` runs through its innermost loop."""
    a = launch.arguments
    if launch.kernel == "conv.conv_kernel":
        taps = a["TAPS_H"] * a["TAPS_W"]  # of a strided dgrad the parities share them out
        return ceil_div(taps * ceil_div(a["DEPTH"], a["BLOCK_K"]), a["OUT_STRIDE"] ** 2)
    return int(a.get("STEPS", 1))


def loaded(launch: Launch, compulsory: float) -> float:
    """Bytes that the programs load: of products a tile of each operand a step, however often another has loaded it."""
    a = launch.arguments
    sizes = {
        "conv.conv_kernel": ("BLOCK_M", "BLOCK_N", "BLOCK_K"),
        "wgrad.wgrad_kernel": ("BLOCK_C", "BLOCK_K", "BLOCK_P"),
    }
    if launch.kernel not in sizes:
        return compulsory
    m, n, k = (a[name] for name in sizes[launch.kernel])
    if a.get("norm_args") is not None:
        n *= 2  # dy is made of two tensors
    return float(prod(launch.grid) * trips(launch) * (m + n) * k * a["x_ptr"].element_size())


def _predicted(launch: Launch, compiled: Compiled, device: Device) -> Predicted:
    programs, code = prod(launch.grid), compiled.code
    processors = int(device.processors.value)
    busiest = ceil_div(programs, processors) * processors / programs
    issued = programs * compiled.threads / WARP * (code.once + trips(launch) * code.loop)
    slots = processors * device.schedulers.value * device.clock.value
    moved = float(sum(bytes_of(launch).values()))
    rate = device.int8.value if is_int8(launch) else device.tensor.value
    resident = compiled.resident(device)
    waves = ceil_div(programs, processors * resident)
    ahead = launch.tile.stages - 1 if code.loop_copies else 1
    rounds = ceil(trips(launch) / ahead) if code.loop_copies or code.loop_loads else 0
    alone, shared = (waves, 0) if resident == 1 else (1, waves)
    outside = code.once * compiled.threads / WARP / device.schedulers.value / device.clock.value
    return Predicted(
        launch,
        resident,
        compiled.registers,
        code.loop,
        memory=1e3 * moved / device.memory.value,
        cache=1e3 * loaded(launch, moved) / device.cache.value,
        tensor=1e3 * busiest * flops_of(launch) / rate,
        issue=1e3 * busiest * issued / slots,
        waits=1e3 * (waves * rounds + shared * code.waits) * device.latency.value,
        alone=1e3 * alone * (code.waits * device.latency.value + (outside if resident == 1 else 0.0)),
        gap=1e3 * device.gap.value,
    )


def floor(one: Predicted, device: Device) -> float:
    """The time that memory or tensor cores need for one launch."""
    moved = float(sum(bytes_of(one.launch).values()))
    return device.ceilings.floor_ms(flops_of(one.launch), moved, int8=is_int8(one.launch))


_PARTS = ("memory", "cache", "tensor", "issue", "waits")
HEADER = ("kernel", "launches", "model ms", "floor ms", *(f"{part} ms" for part in _PARTS), "programs")


def table(predicted: Sequence[Predicted], device: Device) -> list[list[str]]:
    """A row for each kind of kernel, the slowest first, and one for the sums."""
    groups: dict[str, list[Predicted]] = defaultdict(list)
    for one in predicted:
        groups[one.name].append(one)
    rows = [
        _row(name, ones, device)
        for name, ones in sorted(groups.items(), key=lambda item: -sum(one.ms for one in item[1]))
    ]
    return [*rows, _row("all", predicted, device)]


def _row(name: str, ones: Sequence[Predicted], device: Device) -> list[str]:
    parts = [sum(getattr(one, part) for one in ones) for part in _PARTS]
    figures = [sum(one.ms for one in ones), sum(floor(one, device) for one in ones), *parts]
    fewest = min(one.resident for one in ones)
    return [name, str(len(ones)), *(f"{figure:.3f}" for figure in figures), str(fewest)]


def as_text(predicted: Sequence[Predicted], device: Device) -> str:
    """The table, what it leaves out, and the sources of the device's rates."""
    rows = [list(HEADER), *table(predicted, device)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(HEADER))]
    lines = ["a model, not a measurement: work and waits of each launch, added up"]
    for row in rows:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    alone = sum(one.resident == 1 for one in predicted)
    lines.append(f"{alone} of {len(predicted)} launches fit a processor once")
    lines += [f"{name} {rate.value:.4g} {rate.unit}: {rate.source}" for name, rate in device.rates.items()]
    return "\n".join(lines)

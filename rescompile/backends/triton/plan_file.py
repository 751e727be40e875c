"""``plan.json`` written and read; it is checked before anything is launched.

A plan names addresses that a GPU will write, so each must lie where the plan itself says that there is memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from rescompile.backends.triton.plan import (
    ALIGNMENT,
    FORMAT,
    READABLE,
    Argument,
    Kernel,
    Launch,
    Memory,
    Plan,
    Program,
    Stored,
)
from rescompile.backends.triton.steps import Head, reads, weights_of, writes
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import EngineError, reason_of
from rescompile.files import atomic_write
from rescompile.manifest import TRITON_PLAN, TRITON_WEIGHTS, Manifest

ARENA_LIMIT = 1 << 38
"""256 GiB: more than any GPU has, and far more than a batch of thousands needs."""
_BITS = {"i32": 31, "i64": 63}


class _Version(msgspec.Struct):
    format: int


def write_plan(directory: Path, plan: Plan) -> None:
    """Write ``plan.json``; raises OutputError where the disk is full."""
    atomic_write(directory / TRITON_PLAN, msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")


def read_plan(source: EngineSource, manifest: Manifest | None = None) -> Plan:
    """Read ``plan.json`` and check it, also against ``manifest`` where one is given.

    Raises:
        EngineError: it is missing, of another format, damaged, contradicts itself, or belongs to another engine.
    """
    files = files_in(source)
    path, text = files.path(TRITON_PLAN), files.read(TRITON_PLAN)
    try:
        found = msgspec.json.decode(text, type=_Version).format
        if found not in READABLE:
            raise EngineError(
                f"{path} has format {found}, this rescompile reads format {FORMAT} and older: "
                "build the engine again with this version, or install the version that built it"
            )
        plan = msgspec.json.decode(text, type=READABLE[found])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(
            f"{path} is damaged ({reason_of(error)}); copy or build the engine again"
        ) from error
    fault = next(_faults(plan, manifest), None)
    if fault is not None:
        raise EngineError(f"{path} cannot be executed: {fault}; build the engine again")
    return plan


def _faults(plan: Plan, manifest: Manifest | None) -> Iterator[str]:
    """Everything that is wrong with ``plan``; later faults assume that there are no earlier ones."""
    batches = [program.batch for program in plan.programs]
    if not batches or batches != sorted(set(batches)):
        yield f"its programs take batches of {batches}, which must be there and ascend"
    for kernel in plan.kernels:
        if any(sign in kernel.file for sign in "/\\\0") or not kernel.file.endswith(".cubin"):
            yield f"'{kernel.file}' is not a file of machine code in this directory"
    yield from _step_faults(plan)
    for program in plan.programs:
        if program.arena_bytes > ARENA_LIMIT:
            yield f"batch {program.batch} asks for {program.arena_bytes:,} bytes of memory"
        for number, launch in enumerate(program.launches):
            for fault in _launch_faults(plan, program, launch):
                yield f"batch {program.batch}, launch {number}: {fault}"
    if manifest is not None:
        yield from _mismatches(plan, manifest)


def _mismatches(plan: Plan, manifest: Manifest) -> Iterator[str]:
    """Reasons why ``plan`` is not the plan of the engine of ``manifest``."""
    image, least, most = manifest.inputs[0], plan.programs[0].batch, plan.programs[-1].batch
    if (plan.image.dtype, plan.image.shape) != (image.dtype, image.shape[1:]):
        yield (
            f"it takes images {plan.image.dtype} {list(plan.image.shape)}, the manifest says {image.dtype} "
            f"{list(image.shape[1:])}"
        )
    if (
        (plan.classes,) != manifest.outputs[0].shape[1:]
        or len(manifest.outputs) != 1
        or plan.precision != manifest.precision
    ):
        yield f"it is an {plan.precision} network of {plan.classes} classes, the manifest describes another"
    if plan.target != manifest.target:
        yield f"it is for {plan.target}, the manifest says {manifest.target}"
    if (least, most) != (manifest.batch.min, manifest.batch.max):
        yield f"it takes batches of {least} to {most}, the manifest says {manifest.batch}"
    for name in (TRITON_WEIGHTS, *(kernel.file for kernel in plan.kernels)):
        if name not in manifest.files:
            yield f"the manifest lists no '{name}'"


def _step_faults(plan: Plan) -> Iterator[str]:
    """Tensors that no step made, missing weights, or steps that do not end in the head."""
    written: set[str] = set()
    for step in plan.steps:
        for name in reads(step):
            if name not in written:
                yield f"step '{step.name}' reads '{name}', which no step before it makes"
        for name in weights_of(step, integer=plan.precision == "int8"):
            if name not in plan.weights:
                yield f"step '{step.name}' needs the weight '{name}', which the plan does not list"
        written |= set(writes(step))
    if [index for index, step in enumerate(plan.steps) if isinstance(step, Head)] != [len(plan.steps) - 1]:
        yield "its steps do not end in one head"


def _launch_faults(plan: Plan, program: Program, launch: Launch) -> Iterator[str]:
    if launch.kernel >= len(plan.kernels):
        yield f"there is no kernel {launch.kernel} among {len(plan.kernels)}"
    if launch.step >= len(plan.steps):
        yield f"there is no step {launch.step} among {len(plan.steps)}"
    kernel = plan.kernels[launch.kernel]
    if len(launch.arguments) != len(kernel.parameters):
        yield f"{len(launch.arguments)} arguments for {len(kernel.parameters)} parameters of {kernel.entry}"
    for index, value in enumerate(launch.arguments):
        fault = _argument_fault(plan, program, kernel, index, value)
        if fault is not None:
            yield f"argument {index} of {kernel.entry} {fault}"


def _argument_fault(plan: Plan, program: Program, kernel: Kernel, index: int, value: Argument) -> str | None:
    kind = kernel.parameters[index]
    if isinstance(value, int | float):
        if kind.startswith("*") or (isinstance(value, float) and kind != "fp32"):
            return f"is the number {value} in place of {kind}"
        fits = kind not in _BITS or -(2 ** _BITS[kind]) <= value < 2 ** _BITS[kind]
        return None if fits else f"is {value}, which is not an {kind}"
    if not kind.startswith("*"):
        return f"is an address in place of {kind}"
    if isinstance(value, Memory):
        if value.offset % ALIGNMENT or value.offset + value.bytes > program.arena_bytes:
            return (
                f"lies at {value.offset:,} + {value.bytes:,} of an arena of {program.arena_bytes:,} bytes "
                f"(addresses are multiples of {ALIGNMENT})"
            )
    elif isinstance(value, Stored) and value.name not in plan.weights:
        return f"is the weight '{value.name}', which the plan does not list"
    return None

"""``plan.json`` written and read; what is read is checked before anything is launched.

A plan names addresses that a GPU will write, so each must lie where the plan itself says that there is memory.
"""

from __future__ import annotations

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
from rescompile.errors import EngineError
from rescompile.files import atomic_write
from rescompile.manifest import TRITON_PLAN as PLAN
from rescompile.manifest import TRITON_WEIGHTS as WEIGHTS
from rescompile.manifest import Manifest

ARENA_LIMIT = 1 << 38
"""256 GiB: more than any GPU has, and far more than a batch of thousands needs."""
_WIDTHS = {"i32": 31, "i64": 63}


class _Version(msgspec.Struct):
    format: int


def write_plan(directory: Path, plan: Plan) -> None:
    """Write ``plan.json``.

    Raises:
        OutputError: the disk is full.
    """
    atomic_write(directory / PLAN, msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")


def read_plan(directory: Path, manifest: Manifest | None = None) -> Plan:
    """Read ``plan.json`` and check it, against ``manifest`` too where one is given.

    Raises:
        EngineError: it is missing, of another format, damaged, contradicts itself, or belongs to another engine.
    """
    path = directory / PLAN
    try:
        text = path.read_bytes()
        found = msgspec.json.decode(text, type=_Version).format
        if found not in READABLE:
            raise EngineError(
                f"{path} has format {found}, this rescompile reads format {FORMAT} and older: "
                "build the engine again with this version, or install the version that built it"
            )
        plan = msgspec.json.decode(text, type=READABLE[found])
    except FileNotFoundError:
        raise EngineError(f"{path} is missing; copy or build the engine again") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"{path} is damaged ({error}); copy or build the engine again") from error
    fault = _fault(plan) or (None if manifest is None else _mismatch(plan, manifest))
    if fault is not None:
        raise EngineError(f"{path} cannot be executed: {fault}; build the engine again")
    return plan


def _mismatch(plan: Plan, manifest: Manifest) -> str | None:
    """Why ``plan`` is not the plan of this engine."""
    image, batches = manifest.inputs[0], [program.batch for program in plan.programs]
    if (plan.image.dtype, plan.image.shape) != (image.dtype, image.shape[1:]):
        return (
            f"it takes images {plan.image.dtype} {list(plan.image.shape)}, the manifest says {image.dtype} "
            f"{list(image.shape[1:])}"
        )
    if plan.classes != len(manifest.classes) or plan.precision != manifest.precision:
        return f"it is an {plan.precision} network of {plan.classes} classes, the manifest describes another"
    if plan.target != manifest.target:
        return f"it is for {plan.target}, the manifest says {manifest.target}"
    if (min(batches), max(batches)) != (manifest.batch.min, manifest.batch.max):
        return f"it takes batches of {min(batches)} to {max(batches)}, the manifest says {manifest.batch}"
    needed = (WEIGHTS, *(kernel.file for kernel in plan.kernels))
    missing = [name for name in needed if name not in manifest.files]
    return f"the manifest lists no '{missing[0]}'" if missing else None


def _fault(plan: Plan) -> str | None:
    """The first thing in ``plan`` that cannot be, in words."""
    batches = [program.batch for program in plan.programs]
    if not batches or batches != sorted(set(batches)):
        return f"its programs take batches of {batches}, which must be there and ascend"
    for kernel in plan.kernels:
        if any(sign in kernel.file for sign in "/\\\0") or not kernel.file.endswith(".cubin"):
            return f"'{kernel.file}' is no file of machine code in this directory"
    fault = _steps_fault(plan)
    if fault is not None:
        return fault
    for program in plan.programs:
        if program.arena_bytes > ARENA_LIMIT:
            return f"batch {program.batch} asks for {program.arena_bytes:,} bytes of memory"
        for number, launch in enumerate(program.launches):
            fault = _launch_fault(plan, program, launch)
            if fault is not None:
                return f"batch {program.batch}, launch {number}: {fault}"
    return None


def _steps_fault(plan: Plan) -> str | None:
    """What the steps lack: a tensor that none of them made, a weight, or the head at their end."""
    written: set[str] = set()
    for step in plan.steps:
        missing = [name for name in reads(step) if name not in written]
        if missing:
            return f"step '{step.name}' reads '{missing[0]}', which no step before it makes"
        missing = [
            name for name in weights_of(step, integer=plan.precision == "int8") if name not in plan.weights
        ]
        if missing:
            return f"step '{step.name}' needs the weight '{missing[0]}', which the plan does not list"
        written |= set(writes(step))
    heads = [index for index, step in enumerate(plan.steps) if isinstance(step, Head)]
    return None if heads == [len(plan.steps) - 1] else "its steps do not end in one head"


def _launch_fault(plan: Plan, program: Program, launch: Launch) -> str | None:
    if launch.kernel >= len(plan.kernels):
        return f"there is no kernel {launch.kernel} among {len(plan.kernels)}"
    if launch.step >= len(plan.steps):
        return f"there is no step {launch.step} among {len(plan.steps)}"
    kernel = plan.kernels[launch.kernel]
    if len(launch.arguments) != len(kernel.parameters):
        return f"{len(launch.arguments)} arguments for {len(kernel.parameters)} parameters of {kernel.entry}"
    faults = (
        _argument_fault(plan, program, kernel, index, value) for index, value in enumerate(launch.arguments)
    )
    return next((fault for fault in faults if fault is not None), None)


def _argument_fault(plan: Plan, program: Program, kernel: Kernel, index: int, value: Argument) -> str | None:
    kind, what = kernel.parameters[index], f"argument {index} of {kernel.entry}"
    if isinstance(value, int | float):
        if kind.startswith("*") or (isinstance(value, float) and kind != "fp32"):
            return f"{what} is the number {value} in place of {kind}"
        too_large = kind in _WIDTHS and not -(2 ** _WIDTHS[kind]) <= value < 2 ** _WIDTHS[kind]
        return f"{what}, {value}, is no {kind}" if too_large else None
    if not kind.startswith("*"):
        return f"{what} is an address in place of {kind}"
    if isinstance(value, Memory):
        if value.offset % ALIGNMENT or value.offset + value.bytes > program.arena_bytes:
            return (
                f"{what} lies at {value.offset:,} + {value.bytes:,} of an arena of {program.arena_bytes:,} bytes "
                f"(addresses are multiples of {ALIGNMENT})"
            )
    elif isinstance(value, Stored) and value.name not in plan.weights:
        return f"{what} is the weight '{value.name}', which the plan does not list"
    return None

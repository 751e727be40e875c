"""Assembling a plan and its machine code from a network, a target and batch sizes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any, cast

import torch

from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.variant import CONSTANT, Variant, variant_of
from fused_kernels.gpus import Target
from fused_kernels.launch import Launch
from rescompile.backends.base import Progress
from rescompile.backends.triton import plan as plans
from rescompile.backends.triton.lowering.network import Network
from rescompile.backends.triton.plan import Argument, Kernel, Plan
from rescompile.backends.triton.planning.compile import compile_variants
from rescompile.backends.triton.planning.recording import Recording, record, tensor_of
from rescompile.backends.triton.steps import Head
from rescompile.errors import BackendError
from rescompile.manifest import Batch, Precision

_ASSEMBLER = {"i32": "u32", "i64": "u64", "fp32": "f32"}
"""PTX types of numbers; every address is ``u64``."""


@dataclass(frozen=True)
class Assembled:
    """A plan with its machine code."""

    plan: Plan
    cubins: dict[str, bytes]
    """Machine code by file name."""


def assemble(
    network: Network,
    image: plans.Tensor,
    *,
    precision: Precision,
    target: Target,
    batch: Batch,
    progress: Progress | None = None,
) -> Assembled:
    """Plan and compile ``network`` for images like ``image`` (without a batch dimension).

    Raises:
        BackendError: a kernel does not compile.
    """
    specs = {
        name: plans.Tensor(cast("plans.DType", str(values.dtype)), values.shape)
        for name, values in network.weights.items()
    }
    weights = {name: meta_tensor(spec) for name, spec in specs.items()}
    recordings = [
        record(network.steps, weights, meta_tensor(image), batch=size, shared_limit=target.shared_limit)
        for size in sorted({batch.min, batch.opt, batch.max})
    ]
    variants = list(
        dict.fromkeys(
            variant_of(recorded.launch) for recording in recordings for recorded in recording.launches
        )
    )
    codes = compile_variants(variants, target, progress)
    kernels = [_kernel(variant, code) for variant, code in zip(variants, codes, strict=True)]
    index = {variant: position for position, variant in enumerate(variants)}
    head = next(step for step in network.steps if isinstance(step, Head))
    plan = Plan(
        format=plans.FORMAT,
        precision=precision,
        target=target.name,
        triton=metadata.version("triton"),
        image=image,
        classes=len(network.weights[f"{head.name}.bias"]),
        steps=network.steps,
        kernels=tuple(kernels),
        programs=tuple(_program(recording, index) for recording in recordings),
        weights=specs,
    )
    return Assembled(plan, {kernel.file: code.cubin for kernel, code in zip(kernels, codes, strict=True)})


def meta_tensor(spec: plans.Tensor) -> torch.Tensor:
    """A tensor of this type and shape without values."""
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")


def _program(recording: Recording, index: dict[Variant, int]) -> plans.Program:
    launches = []
    for recorded in recording.launches:
        launch, variant = recorded.launch, variant_of(recorded.launch)
        x, y, z = (*launch.grid, 1, 1)[:3]
        arguments = tuple(_argument(value, recording) for value in _passed(variant, launch))
        launches.append(plans.Launch(recorded.step, index[variant], (x, y, z), arguments))
    placed = recording.placement
    return plans.Program(
        batch=recording.batch,
        arena_bytes=placed.arena_bytes,
        live_bytes=placed.live_bytes,
        launches=tuple(launches),
    )


def _argument(value: Any, recording: Recording) -> Argument:
    tensor = tensor_of(value)
    return cast("Argument", value) if tensor is None else recording.address(tensor)


def _kernel(variant: Variant, code: Code) -> Kernel:
    kinds = _kinds(variant)
    scratch = len(code.parameters) - len(kinds)
    passed = [_ASSEMBLER.get(kind, "u64") for kind in kinds] + ["u64"] * scratch
    if scratch < 0 or passed != list(code.parameters):
        raise BackendError(
            f"{variant.kernel} is passed {', '.join(kinds)}, its machine code takes {', '.join(code.parameters)}: "
            f"plans do not know how this Triton ({metadata.version('triton')}) passes arguments; install Triton 3.6"
        )
    digest = hashlib.sha256(code.cubin).hexdigest()[:12]
    return Kernel(
        file=f"{variant.kernel.rpartition('.')[2]}-{digest}.cubin",
        entry=code.entry,
        threads=code.threads,
        shared_bytes=code.shared_bytes,
        scratch=scratch,
        parameters=tuple(cast("Any", kind) for kind in kinds),
    )


def _kinds(variant: Variant) -> list[str]:
    """Types of what a launch passes, in order."""
    items = [item for _, kind in variant.types for item in (kind if isinstance(kind, tuple) else (kind,))]
    return [str(item) for item in items if item != CONSTANT]


def _passed(variant: Variant, launch: Launch) -> list[Any]:
    """The values that a launch passes, in order: everything that was not compiled in."""
    values: list[Any] = []
    for name, kind in variant.types:
        value = launch.arguments[name]
        items = zip(kind, value, strict=True) if isinstance(kind, tuple) else [(kind, value)]
        values += [item for item_kind, item in items if item_kind != CONSTANT]
    return values

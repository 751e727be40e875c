"""A network, a target and batch sizes to a plan and its machine code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any, cast

import torch

from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.targets import Target
from fused_kernels.compiling.variant import CONSTANT, Variant, variant_of
from fused_kernels.launch import Functor, Launch
from rescompile.backends.base import Progress
from rescompile.backends.triton import plan as plans
from rescompile.backends.triton.compile import compile_variants
from rescompile.backends.triton.lower import Network
from rescompile.backends.triton.plan import (
    Argument,
    Constant,
    Function,
    Group,
    Kernel,
    Parameter,
    Plan,
    Source,
)
from rescompile.backends.triton.record import Recording, record, tensor_of
from rescompile.backends.triton.steps import Head
from rescompile.errors import BackendError
from rescompile.manifest import Batch, Precision

_ASSEMBLER = {"i32": "u32", "i64": "u64", "fp32": "f32"}
"""Types of numbers in PTX; every address is ``u64``."""


@dataclass(frozen=True)
class Assembled:
    """A plan with its machine code."""

    plan: Plan
    cubins: dict[str, bytes]
    """By file name."""


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
    weights = {name: _meta(spec) for name, spec in specs.items()}
    recordings = [
        record(network.steps, weights, _meta(image), batch=size, shared_limit=target.shared_limit)
        for size in sorted({batch.min, batch.opt, batch.max})
    ]
    variants = {
        variant_of(recorded.launch): recorded.launch
        for recording in recordings
        for recorded in recording.launches
    }
    codes = compile_variants(list(variants), target, progress)
    kernels = [
        _kernel(variant, launch, code)
        for (variant, launch), code in zip(variants.items(), codes, strict=True)
    ]
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


def _meta(spec: plans.Tensor) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")


def _program(recording: Recording, index: dict[Variant, int]) -> plans.Program:
    launches = []
    for recorded in recording.launches:
        launch, variant = recorded.launch, variant_of(recorded.launch)
        x, y, z = (*launch.grid, 1, 1)[:3]
        _, values = _signature(variant, launch)
        arguments = tuple(_argument(value, recording) for value in values)
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


def _kernel(variant: Variant, launch: Launch, code: Code) -> Kernel:
    source, values = _signature(variant, launch)
    kinds = _kinds(variant)
    scratch = len(code.parameters) - len(values)
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
        function=variant.kernel,
        source=source,
    )


def _kinds(variant: Variant) -> list[str]:
    """Types of what a launch passes, in order."""
    items = [item for _, kind in variant.types for item in (kind if isinstance(kind, tuple) else (kind,))]
    return [str(item) for item in items if item != CONSTANT]


def _signature(variant: Variant, launch: Launch) -> tuple[dict[str, Source], list[Any]]:
    """Every parameter of the kernel by name, and the values that a launch passes."""
    values: list[Any] = []

    def entry(kind: Any, value: Any) -> Parameter | Constant | Function:
        if kind != CONSTANT:
            values.append(value)
            return Parameter(len(values) - 1)
        return Function(value.name) if isinstance(value, Functor) else Constant(value)

    source: dict[str, Source] = {}
    for name, kind in variant.types:
        value = launch.arguments[name]
        if isinstance(kind, tuple):
            source[name] = Group(tuple(entry(k, v) for k, v in zip(kind, value, strict=True)))
        else:
            source[name] = entry(kind, value)
    return source, values

"""Whole plans of the small networks in a directory, with stand-ins for machine code: nothing is compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import msgspec

from calibration.preprocess import CIFAR
from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.variant import CONSTANT, Variant
from fused_kernels.gpus import TARGETS, Target
from rescompile.backends.base import Progress
from rescompile.backends.triton import plan as plans
from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.plan_file import write_plan
from rescompile.backends.triton.planning import assemble
from rescompile.backends.triton.weights import write_weights
from rescompile.manifest import (
    FORMAT,
    Batch,
    CheckpointRef,
    FileDigest,
    Manifest,
    OutputSpec,
    Precision,
    TensorSpec,
)
from rescompile.manifest import TRITON_PLAN as PLAN
from rescompile.manifest import TRITON_WEIGHTS as WEIGHTS
from tests.backends.triton.networks import CLASSES, SIDES, network

SCRATCH = 2


def stand_ins(variants: Sequence[Variant], target: Target, progress: Progress | None = None) -> list[Code]:
    """Code of the right form: its bytes are those of the variant."""
    made = []
    for variant in variants:
        items = [item for _, kind in variant.types for item in (kind if isinstance(kind, tuple) else (kind,))]
        words = {"i32": "u32", "fp32": "f32"}
        passed = [words.get(item, "u64") for item in items if item != CONSTANT]
        digest = hashlib.sha256(repr(variant).encode()).digest()
        entry = variant.kernel.rpartition(".")[2]
        made.append(
            Code(
                digest, entry, 32 * dict(variant.options)["num_warps"], 50_000, (*passed, *["u64"] * SCRATCH)
            )
        )
    return made


def make_plan(
    directory: Path,
    name: str,
    precision: Precision,
    *,
    batch: Batch = Batch(1, 2, 3),  # noqa: B008 - frozen
    pixels: bool = False,
) -> Plan:
    """Write a plan, its weights and stand-ins for its machine code into ``directory``."""
    made, side = network(name, precision, pixels=pixels), SIDES[name]
    image = plans.Tensor("uint8", (side, side, 3)) if pixels else plans.Tensor("float32", (3, side, side))
    with patch.object(assemble, "compile_variants", stand_ins):
        assembled = assemble.assemble(made, image, precision=precision, target=TARGETS["sm_90"], batch=batch)
    for file, cubin in assembled.cubins.items():
        (directory / file).write_bytes(cubin)
    write_weights(directory, made.weights)
    write_plan(directory, assembled.plan)
    return assembled.plan


def manifest_of(plan: Plan) -> Manifest:
    """A manifest that fits ``plan``, with hashes of nothing."""
    batches = [program.batch for program in plan.programs]
    layout, shape = ("NHWC" if plan.image.dtype == "uint8" else "NCHW"), (-1, *plan.image.shape)
    files = {PLAN, WEIGHTS, *(kernel.file for kernel in plan.kernels)}
    return Manifest(
        format=FORMAT,
        model="small",
        depth=None,
        precision=plan.precision,
        backend="triton",
        target=plan.target,
        batch=Batch(batches[0], batches[-1], batches[-1]),
        inputs=(TensorSpec("input", shape, "uint8" if layout == "NHWC" else "float32", layout),),
        outputs=(
            OutputSpec(
                "logits",
                (-1, CLASSES),
                "float32",
                "NC",
                labels=tuple(f"class {index}" for index in range(CLASSES)),
            ),
        ),
        preprocess=msgspec.structs.replace(CIFAR, resize=None, crop=32),
        checkpoint=CheckpointRef("0" * 64, "random"),
        calibration=None,
        golden_relative_rms=5e-2,
        files={file: FileDigest("0" * 64, 1) for file in sorted(files)},
        environment={},
    )

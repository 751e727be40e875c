"""Checks every operation and the whole network, before anything is timed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.correctness import check, worst
from benchmarks.gpu.inference_cases import inference_specs
from benchmarks.gpu.launches import network_launches
from benchmarks.gpu.layers import distinct_layers
from benchmarks.gpu.network_checks import check_block, check_inference, check_training
from benchmarks.gpu.op_case import OpCase
from benchmarks.gpu.training_cases import OpSpec, training_specs
from fused_kernels.choice import choosing, default_tile
from fused_kernels.gpus import limit_on
from fused_kernels.launch import Launch, recording
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

FP32_LAYERS = ("layer1.0.conv2", "layer2.0.conv1", "layer2.0.downsample.0")
"""Layers that are checked in fp32, which is not a fast path: a 3x3, a 1x1 and a strided window stand for all."""
FLAT_WARPS = (4, 8)


def correctness(context: Context) -> None:
    """Operations in every dtype, networks, blocks, then the form of the main loop that Triton has miscompiled."""
    for spec in correctness_specs(context):
        context.run(spec.label, "correctness", partial(_checked, spec, context))
    for name, function in network_checks(context).items():
        context.run(name, "correctness", function)
    for spec, warps in product(flat_specs(context), FLAT_WARPS):
        name = f"flattened loop, {warps} warps: {spec.label}"
        context.run(name, "flattened_loop", partial(_flattened, spec, warps, context))


def correctness_specs(context: Context) -> list[OpSpec]:
    """Every operation in the dtype that it is used in, a few in fp32."""
    scale, setting = context.scale, context.setting
    specs = training_specs(scale, setting.training_dtype)
    specs += inference_specs(scale, setting.inference_dtype)
    specs += inference_specs(scale, torch.int8)
    return specs + [
        spec for spec in training_specs(scale, torch.float32) if spec.name.startswith(FP32_LAYERS)
    ]


def network_checks(context: Context) -> dict[str, Any]:
    """Blocks and whole networks, by name."""
    setting, batch = context.setting, context.checked
    checks: dict[str, Any] = {
        f"block {part}": lambda part=part: _summed(check_block(setting, part, batch))
        for part in block_names(context)
    }
    checks["training step"] = lambda: _summed(check_training(setting, batch))
    checks["inference"] = lambda: _inference(context)
    return checks


def block_names(context: Context) -> list[str]:
    """The first two blocks of each stage: with a projection, and without."""
    counts = context.scale.blocks
    return [
        f"layer{stage}.{index}" for stage, count in enumerate(counts, 1) for index in range(min(2, count))
    ]


def flat_specs(context: Context) -> list[OpSpec]:
    """fprop and dgrad of every 3x3, and its int8 form."""
    names = {layer.name for layer in distinct_layers(context.scale) if layer.role == "conv2"}
    specs = training_specs(context.scale, context.setting.training_dtype)
    specs += inference_specs(context.scale, torch.int8)
    return [spec for spec in specs if spec.name.split(" ")[0] in names and not spec.name.endswith("wgrad")]


def flat(warps: int, context: Context) -> Any:
    """A function for ``choosing`` that gives the default tile with one loop over taps and channel blocks."""

    def choose(problem: Problem) -> Tile:
        tile = default_tile(problem, shared=limit_on(context.device))
        return replace(tile, flat=True, warps=warps, registers=0)  # its limit belongs to its own warps

    return choose


def correctness_launches(context: Context) -> list[Launch]:
    """All that this phase will launch, on tensors without values."""
    n, meta = context.checked, torch.device("meta")
    with recording() as launches:
        for spec in correctness_specs(context):
            spec.make(n, meta).run()
        for spec, warps in product(flat_specs(context), FLAT_WARPS):
            with choosing(flat(warps, context)):
                spec.make(n, meta).run()
    dtype = context.setting.training_dtype
    launches += network_launches(context.scale, n, dtype, training=True)
    for part in block_names(context):
        launches += network_launches(context.scale, n, dtype, training=True, part=part)
    return launches + network_launches(context.scale, n, context.setting.inference_dtype, training=False)


def _checked(spec: OpSpec, context: Context) -> dict[str, Any]:
    return _summed(check(spec.make(context.checked, context.device)))


def _summed(verdict: dict[str, Any]) -> dict[str, Any]:
    return {**verdict, "worst": worst(verdict)}


def _inference(context: Context) -> dict[str, Any]:
    checks = check_inference(context.setting, context.checked)
    wrong = [name for name, verdict in checks.items() if not verdict["correct"]]
    text = "; ".join(f"{name} {worst(verdict)}" for name, verdict in checks.items())
    return {"correct": not wrong, "worst": text, "checks": checks}


def _flattened(spec: OpSpec, warps: int, context: Context) -> dict[str, Any]:
    """Check the flat form; a wrong result is not a defect of ours, because default tiles never use this form."""
    case: OpCase = spec.make(context.checked, context.device)
    expected = case.named(case.run())
    with choosing(flat(warps, context)):
        verdict = check(case)
        found = case.named(case.run())
    share = max(
        ((found[name].double() - value.double()).abs() > 0.02 * value.double().abs().max())
        .double()
        .mean()
        .item()
        for name, value in expected.items()
    )
    return {"correct": verdict["correct"], "wrong_share": share, "worst": worst(verdict), "warps": warps}

"""Every operation at the batch of the bars, beside cuDNN's convolution and the passes that eager adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.correctness import SLACK, TIMES, check, cudnn_heuristics, distance, worst
from benchmarks.gpu.inference_cases import inference_specs
from benchmarks.gpu.op_case import OpCase
from benchmarks.gpu.timing import Contender, contender, notes_of, race
from benchmarks.gpu.training_cases import OpSpec, training_specs
from fused_kernels.launch import Launch, recording
from fused_kernels.tune.timing import first_line

SECONDS = 0.4
"""Seconds for the rounds of one operation."""
ROUNDS = 15
OURS = "ours"


def kernels(context: Context) -> None:
    """Training's operations, those first that the step spends most time on, then inference's."""
    for spec, batch in kernel_specs(context):
        context.run(f"{spec.label} b{batch}", "cases", partial(timed, spec, batch, context))


def kernel_specs(context: Context) -> list[tuple[OpSpec, int]]:
    """Operations and their batches, in the order of their importance."""
    scale, setting = context.scale, context.setting
    training = [(spec, context.largest) for spec in training_specs(scale, setting.training_dtype)]
    inference = [(spec, context.inference) for spec in inference_specs(scale, setting.inference_dtype)]
    int8 = [(spec, context.inference) for spec in inference_specs(scale, torch.int8)]
    early = [pair for pair in training if pair[0].name.startswith(("layer1", "layer2", "stem"))]
    late = [pair for pair in training if pair not in early]
    return [*early, *inference[: len(inference) // 2], *late, *inference[len(inference) // 2 :], *int8]


def kernel_launches(context: Context) -> list[Launch]:
    """All that this phase will launch, on tensors without values."""
    with recording() as launches:
        for spec, batch in kernel_specs(context):
            spec.make(batch, torch.device("meta")).run()
    return launches


def timed(spec: OpSpec, batch: int, context: Context) -> dict[str, Any]:
    """Check an operation at few images and at ``batch``, then time it there; a wrong one has no time."""
    small = check(spec.make(context.checked, context.device))
    case = spec.make(batch, context.device)
    result: dict[str, Any] = {"count": spec.count, "correct": small["correct"], "worst": worst(small)}
    if small["correct"]:
        result["worst"] = off_at_size(case, small["results"])
        result["correct"] = result["worst"] is None
    if not result["correct"]:
        return result
    moved = case.moved(case.run())
    contenders, skipped = _contenders(case, context)
    for name, reason in skipped.items():
        context.skip(f"{spec.label} b{batch}: {name}", reason)
    measured = race(contenders, seconds=context.for_rounds(SECONDS), rounds=ROUNDS)
    ours = measured.pop(OURS)
    return result | {
        "ours_ms": ours.to_json(),
        "peers": {name: found.to_json() for name, found in measured.items()},
        "ratio": {name: found.median / ours.median for name, found in measured.items()},
        "notes": notes_of({OURS: ours, **measured}, contenders),
        **_rates(case, moved, ours.median, context),
    }


def _contenders(case: OpCase, context: Context) -> tuple[dict[str, Contender], dict[str, str]]:
    """Ours, and every peer that runs; those that do not, with the reason."""
    device = context.device
    found = {OURS: contender(case.run, device, flush=context.on_gpu)}
    skipped: dict[str, str] = {}
    name = "peers"
    try:
        for name, step in case.peers().items():
            found[name] = contender(step, device, flush=context.on_gpu)
    except Exception as error:
        # a peer that does not run is not our fault
        context.require_device()
        skipped[name] = first_line(error)
    return found, skipped


def _rates(case: OpCase, moved: int, ms: float, context: Context) -> dict[str, Any]:
    rates: dict[str, Any] = {
        "bytes": moved,
        "flop": case.flops,
        "gb_per_s": moved / ms / 1e6,
        "tflop_per_s": case.flops / ms / 1e9,
    }
    if context.ceilings is not None:
        int8 = any(isinstance(arg, Tensor) and arg.dtype == torch.int8 for arg in case.args)
        floor = context.ceilings.floor_ms(case.flops, moved, int8=int8)
        rates |= {"floor_ms": floor, "ratio_to_floor": ms / floor}
    return rates


def off_at_size(case: OpCase, small: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say what is wrong at the timed size, or return None.

    float64 takes too long there, so the distance from torch's results in the same dtype must be no more than what the
    rule allows both of them together, at twice its size for the statistics of another batch.
    """
    ours = case.named(case.run())
    with cudnn_heuristics():
        torchs = case.torchs()
    for name, expected in torchs.items():
        if expected.dtype == torch.int8:
            off = (ours[name].int() - expected.int()).abs().max().item()
            if off > 1:
                return f"{name} differs from torch's by {off} at the timed size"
            continue
        allowed = TIMES * 1.5 * small[name]["allowed"] + 10 * SLACK
        found = distance(ours[name], expected)
        if not found <= allowed:
            return f"{name} is {found:.1e} from torch's at the timed size, {allowed:.1e} allowed"
    return None

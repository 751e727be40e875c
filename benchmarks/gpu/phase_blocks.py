"""Single blocks and a stage: forward, backward and inference, beside eager and ``torch.compile``."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.launches import floor_ms, network_launches
from benchmarks.gpu.network_checks import check_block
from benchmarks.gpu.networks import Scale
from benchmarks.gpu.peers import Peer, Remote
from benchmarks.gpu.timing import Contender, Measured, contender, free, notes_of, race
from benchmarks.gpu.workloads import INFERENCE_BATCH_OF_BLOCKS, Implementation, Workload, programs
from fused_kernels.launch import Launch

SECONDS = 1.0
COMPILED = "torch.compile"
OURS: Implementation = "ours"
EAGER: Implementation = "eager"
HERE = (OURS, EAGER)
"""Implementations that run in the main process."""


def blocks(context: Context) -> None:
    """The block that kernels.md names first, those with other shapes, then the widest stage."""
    for part in block_parts(context):
        context.run(part, "blocks", partial(_block, part, context))


def block_parts(context: Context) -> list[str]:
    """``layer1.1`` is res2b: identity shortcut at the widest activation."""
    counts = context.scale.blocks
    identity = [f"layer{stage}.1" for stage, count in enumerate(counts, 1) if count > 1]
    projection = [f"layer{stage}.0" for stage in range(1, len(counts) + 1)]
    return [*identity[:1], *projection[:2], "layer1", *identity[1:], *projection[2:]]


def compiled_blocks(scale: Scale) -> list[str]:
    """Blocks that a peer compiles too; each takes it half a minute."""
    return ["layer1.1"] if scale.blocks[0] > 1 else ["layer1.0"]


def block_launches(context: Context) -> list[Launch]:
    """All that this phase will launch, on tensors without values."""
    launches: list[Launch] = []
    for part in block_parts(context):
        launches += _launches(part, context, training=True) + _launches(part, context, training=False)
    return launches


def _launches(part: str, context: Context, *, training: bool) -> list[Launch]:
    setting = context.setting
    batch = context.largest if training else min(context.largest, INFERENCE_BATCH_OF_BLOCKS)
    dtype = setting.training_dtype if training else setting.inference_dtype
    return network_launches(context.scale, batch, dtype, training=training, part=part)


def _block(part: str, context: Context) -> None:
    verdict = check_block(context.setting, part, context.checked)
    if not verdict["correct"]:
        context.emit(
            "result", "cases", {"name": f"block {part}", "correct": False, "worst": str(verdict["results"])}
        )
        return
    workload = Workload("block", context.largest, part)
    steps = {name: programs(workload, context.setting, name).steps for name in HERE}
    peer = Peer(context.options.folder, workload)
    compiled = context.on_gpu and peer.status()["state"] == "ready"
    if context.on_gpu and not compiled:
        context.skip(f"{part}: {COMPILED}", _why_no_peer(workload, peer, context))
    measured: dict[str, dict[str, Measured]] = {}
    for program in ("forward", "both", "inference"):
        contenders: dict[str, Contender] = {
            name: contender(found[program], context.device) for name, found in steps.items()
        }
        if compiled:
            contenders[COMPILED] = Remote(peer, program)
        measured[program] = race(contenders, seconds=context.for_rounds(SECONDS))
        notes = notes_of(measured[program], contenders)
        _emit(context, part, program, measured[program], notes)
        del contenders
    peer.close()
    _emit_backward(context, part, measured)
    free(context.device)


def _why_no_peer(workload: Workload, peer: Peer, context: Context) -> str:
    if workload.name not in context.options.peers:
        return "compiling takes half a minute a block, so not all are compiled"
    status = peer.status()
    return (
        f"torch.compile failed: {status['reason']}"
        if status["state"] == "failed"
        else "it was not compiled in time"
    )


def _emit(context: Context, part: str, program: str, measured: dict[str, Measured], notes: list[str]) -> None:
    training = program != "inference"
    batch = context.largest if training else min(context.largest, INFERENCE_BATCH_OF_BLOCKS)
    label = "forward + backward" if program == "both" else program
    launches = _launches(part, context, training=training)
    if program == "forward":
        launches = network_launches(
            context.scale, batch, context.setting.training_dtype, training=True, part=part, backward=False
        )
    case = case_of(f"block {part} {label} b{batch}", measured, notes)
    if context.ceilings is not None:
        floor = floor_ms(launches, context.ceilings)
        case |= {"floor_ms": floor, "ratio_to_floor": measured[OURS].median / floor}
    context.emit("result", "cases", case)


def case_of(name: str, measured: dict[str, Measured], notes: list[str]) -> dict[str, Any]:
    """One entry of the report's ``cases``."""
    ours = measured[OURS]
    peers = {peer: found for peer, found in measured.items() if peer != OURS}
    return {
        "name": name,
        "correct": True,
        "ours_ms": ours.to_json(),
        "peers": {peer: found.to_json() for peer, found in peers.items()},
        "ratio": {peer: found.median / ours.median for peer, found in peers.items()},
        "notes": notes,
    }


def _emit_backward(context: Context, part: str, measured: dict[str, dict[str, Measured]]) -> None:
    """The difference of two medians, for a graph of the backward pass alone would hold on to the forward's memory."""
    medians = {
        name: measured["both"][name].median - measured["forward"][name].median for name in measured["both"]
    }
    ours = medians.pop(OURS)
    context.emit(
        "result",
        "cases",
        {
            "name": f"block {part} backward b{context.largest}",
            "correct": True,
            "ours_ms": {"median": ours},
            "peers": {name: {"median": ms} for name, ms in medians.items()},
            "ratio": {name: ms / ours for name, ms in medians.items() if ours > 0},
            "notes": ["derived: the median of forward + backward less that of forward"],
        },
    )

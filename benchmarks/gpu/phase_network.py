"""Whole networks: the training step and inference, beside eager and ``torch.compile``; the bars limit these ratios."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.context import Context
from benchmarks.gpu.int8_network import Int8Network
from benchmarks.gpu.launches import floor_ms, network_launches
from benchmarks.gpu.networks import folded, images, plain, settle
from benchmarks.gpu.peers import Peer, Remote, priorities
from benchmarks.gpu.phase_blocks import COMPILED, EAGER, HERE, OURS, case_of
from benchmarks.gpu.timing import Call, Contender, Measured, contender, free, notes_of, peak_memory, race
from benchmarks.gpu.workloads import Programs, Workload, programs
from fused_kernels.blocks.inference import without_chains
from fused_kernels.launch import Launch
from fused_kernels.tune.timing import first_line

SECONDS = 8.0
"""Seconds for the rounds of one workload."""
EACH = 3
"""Runs of one contender in a round."""
RESERVE = {"cuda": 12.0, "cpu": 1.0}
"""Seconds that measuring one workload takes."""
AGREEMENT = 0.05
"""Largest relative difference of an implementation's loss, or of the norm of its logits, from eager's."""
NO_CHAINS, INT8, FP16 = "ours without chains", "int8", "ours fp16"


def network(context: Context) -> None:
    """The bars' workloads as soon as their peers are ready, then the others; none waits longer than there is time."""
    pending = [workload for workload in priorities(context.options.batches, ()) if workload.kind != "block"]
    while pending:
        workload = _next(pending, context)
        if workload is None:
            time.sleep(0.5)
            continue
        pending.remove(workload)
        measure = _train if workload.kind == "train" else _infer
        context.run(workload.name, "network", partial(measure, workload, context))
        free(context.device)


def _next(pending: list[Workload], context: Context) -> Workload | None:
    """The first whose peer has compiled or failed; or the first, where waiting would leave no time for the others."""
    if context.left() < RESERVE[context.device.type] * len(pending):
        return pending[0]
    for workload in pending:
        if _status(workload, context)["state"] != "compiling":
            return workload
    return None


def _status(workload: Workload, context: Context) -> dict[str, Any]:
    if workload.name not in context.options.peers:
        return {"state": "failed", "reason": "it was not among the workloads to compile"}
    return Peer(context.options.folder, workload).status()


def network_workload_launches(context: Context, workload: Workload) -> list[Launch]:
    """Launches of our implementation in one step."""
    training = workload.kind == "train"
    dtype = context.setting.training_dtype if training else context.setting.inference_dtype
    return network_launches(context.scale, workload.batch, dtype, training=training)


def _train(workload: Workload, context: Context) -> None:
    found: dict[str, Programs] = {}
    memory: dict[str, int | None] = {}
    for name in HERE:
        before = torch.cuda.memory_allocated() if context.on_gpu else 0
        found[name] = programs(workload, context.setting, name)
        answer = found[name].answer()
        memory[name] = _less(peak_memory(found[name].steps["step"], context.device), before)
        found[name] = Programs(found[name].steps, lambda answer=answer: answer)  # type: ignore[misc]
    _race(workload, context, found, memory)


def _less(peak: int | None, before: int) -> int | None:
    return None if peak is None else peak - before


def _infer(workload: Workload, context: Context) -> None:
    found: dict[str, Programs] = {name: programs(workload, context.setting, name) for name in HERE}
    _race(workload, context, found, {})


def _race(
    workload: Workload, context: Context, found: dict[str, Programs], memory: dict[str, int | None]
) -> None:
    """Time ours, eager and, where it is ready, the peer; each as a graph, then launched by Python."""
    peer = Peer(context.options.folder, workload)
    status = _status(workload, context)
    answers = {name: one.answer().item() for name, one in found.items()}
    if status["state"] == "ready" and context.on_gpu:
        answers[COMPILED] = status["answer"]
        memory[COMPILED] = (status.get("peak_memory") or {}).get("step")
    else:
        context.skip(f"{workload.name}: {COMPILED}", _why_no_peer(status, peer, context))
    disagreeing = _disagreeing(answers)
    if OURS in disagreeing:
        context.emit(
            "result", "cases", {"name": workload.name, "correct": False, "worst": f"answers {answers}"}
        )
        return
    notes = [f"{name} was dropped: it answers otherwise than eager: {answers}" for name in disagreeing]
    found = {name: one for name, one in found.items() if name not in disagreeing}
    extra: dict[str, Any] = {
        "answers": answers,
        "peak_memory": {name: size for name, size in memory.items() if size is not None},
        "compile": {key: status[key] for key in ("seconds", "mode") if key in status},
        "batch": workload.batch,
    }
    steps = {name: one.steps["step"] for name, one in found.items()}
    graphs: dict[str, Contender] = {name: contender(step, context.device) for name, step in steps.items()}
    if workload.kind == "infer":
        graphs |= _other_inference(workload, context, steps[OURS])
    launched: dict[str, Contender] = {name: Call(step, context.device) for name, step in steps.items()}
    if COMPILED in answers and COMPILED not in disagreeing:
        graphs[COMPILED] = Remote(peer, "step")
        launched[COMPILED] = Remote(peer, "step, launched")
    _emit(
        workload, context, race(graphs, seconds=context.for_rounds(SECONDS), each=EACH), graphs, extra, notes
    )
    del graphs
    free(context.device)  # a graph keeps all of its step's memory
    without = race(launched, seconds=context.for_rounds(SECONDS / 4), rounds=5)
    case = case_of(f"{workload.name} launched by Python", without, notes_of(without, launched))
    context.emit("result", "cases", case | {"batch": workload.batch})
    peer.close()


def _why_no_peer(status: dict[str, Any], peer: Peer, context: Context) -> str:
    if not context.on_gpu:
        if status["state"] == "ready":
            peer.ask("step", 1)  # the way to it is tried all the same
            peer.close()
        return "there is nothing to compile for on a CPU"
    if status["state"] == "failed":
        return f"torch.compile failed: {status['reason']}"
    return "it was not compiled in time"


def _disagreeing(answers: dict[str, float]) -> list[str]:
    expected = answers[EAGER]
    return [
        name for name, answer in answers.items() if not abs(answer - expected) <= AGREEMENT * abs(expected)
    ]


def _other_inference(workload: Workload, context: Context, step: Callable[[], Any]) -> dict[str, Contender]:
    """Ours without the chain kernel, and in int8."""

    def unchained() -> Any:
        with without_chains():
            return step()

    found = {NO_CHAINS: contender(unchained, context.device)}
    try:
        found[INT8] = contender(_int8_step(workload, context), context.device)
    except RuntimeError as error:
        context.require_device()
        context.skip(f"{workload.name}: {INT8}", first_line(error))
    return found


def _int8_step(workload: Workload, context: Context) -> Callable[[], Tensor]:
    source = settle(plain(context.scale, context.device), images(context.scale, 8, context.device))
    quantized = Int8Network(folded(source), images(context.scale, 8, context.device))
    image = quantized.image(images(context.scale, workload.batch, context.device))

    @torch.no_grad()
    def step() -> Tensor:
        return quantized(image)

    return step


def _emit(
    workload: Workload,
    context: Context,
    measured: dict[str, Measured],
    contenders: dict[str, Contender],
    extra: dict[str, Any],
    notes: list[str],
) -> None:
    notes = [*notes, *notes_of(measured, contenders)]
    int8 = measured.pop(INT8, None)
    launches = network_workload_launches(context, workload)
    case = case_of(workload.name, measured, notes) | extra | {"launches": len(launches)}
    case["images_per_s"] = {name: 1e3 * workload.batch / found.median for name, found in measured.items()}
    if context.ceilings is not None:
        floor = floor_ms(launches, context.ceilings)
        case |= {"floor_ms": floor, "ratio_to_floor": measured[OURS].median / floor}
        if context.ceilings.launch_gap_ms is not None:
            case["launch_gaps_ms"] = len(launches) * context.ceilings.launch_gap_ms
    context.emit("result", "cases", case)
    if int8 is not None:
        beside = {OURS: int8, FP16: measured[OURS]}
        beside |= {name: found for name, found in measured.items() if name not in {OURS, NO_CHAINS}}
        fast = case_of(f"int8-b{workload.batch}", beside, notes)
        fast |= {"batch": workload.batch, "images_per_s": {INT8: 1e3 * workload.batch / int8.median}}
        context.emit("result", "cases", fast)

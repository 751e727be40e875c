"""The process that uses the GPU: it runs the phases and tells the command what it finds.

It may die of a kernel's illegal access. Then the command starts another, which leaves out what is done and what killed
this one.
"""

from __future__ import annotations

import faulthandler
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from benchmarks.gpu import ceilings as ceilings_module
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.context import Context, DeviceLost
from benchmarks.gpu.environment import environment
from benchmarks.gpu.gpu_lock import GpuLock
from benchmarks.gpu.networks import FULL, TINY
from benchmarks.gpu.options import Options
from benchmarks.gpu.peer import LOCK
from benchmarks.gpu.phase_blocks import block_launches, blocks
from benchmarks.gpu.phase_correctness import correctness, correctness_launches
from benchmarks.gpu.phase_kernels import kernel_launches, kernels
from benchmarks.gpu.phase_network import network, network_workload_launches
from benchmarks.gpu.phase_residency import residency, residency_launches
from benchmarks.gpu.phase_tuning import candidate_launches, tuning, use_tables
from benchmarks.gpu.precompile import Precompiler
from benchmarks.gpu.timing import free
from benchmarks.gpu.workloads import Setting, Workload
from fused_kernels.compiling.variant import Variant
from fused_kernels.gpus import capability_of
from fused_kernels.launch import Launch, interpreted
from fused_kernels.tune.timing import first_line

PHASES: dict[str, Callable[[Context], None]] = {
    "residency": residency,
    "correctness": correctness,
    "tune": tuning,
    "kernels": kernels,
    "blocks": blocks,
    "network": network,
}
LOST = 3
"""Exit code of a worker that lost its GPU."""


def main(connection: Connection, options: Options, finished: set[str], ceilings: Ceilings | None) -> None:
    """Run every phase that has time left."""
    faulthandler.enable()
    warnings.simplefilter("ignore")  # of torch's, about peers; what matters here is sent
    device = torch.device(options.device)

    def emit(*message: object) -> None:
        connection.send(message)

    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.backends.cudnn.benchmark = True
    emit("environment", environment(device, options.commit))
    context = Context(options, setting_of(device, options), emit, GpuLock(options.folder / LOCK), finished)
    use_tables(context)
    try:
        _run(context, ceilings)
    except DeviceLost as error:
        emit("lost", str(error))
        connection.close()
        raise SystemExit(LOST) from None
    finally:
        context.precompiler.stop()
    emit("end")
    connection.close()


def setting_of(device: torch.device, options: Options) -> Setting:
    """bf16 training and fp16 inference of ResNet-50; in the interpreter, which cannot round to bf16, fp16 alone."""
    training = torch.float16 if interpreted() else torch.bfloat16
    return Setting(device, TINY if options.tiny else FULL, training)


def _run(context: Context, ceilings: Ceilings | None) -> None:
    groups = _precompile(context)
    if ceilings is None:
        with context.lock.held():
            ceilings = ceilings_module.measure(context.device, tiny=context.options.tiny)
        context.emit("ceilings", ceilings)
    context.ceilings = ceilings
    for phase, deadline in context.options.deadlines.items():
        context.phase, context.deadline = phase, deadline
        started = time.monotonic()
        if phase in groups:
            # what is not compiled by then is compiled where it is launched
            context.precompiler.wait(groups[phase], started + max(0.0, deadline - started) / 2)
        try:
            PHASES[phase](context)
        except DeviceLost:
            raise
        except Exception as error:
            # a defect of the phase itself; the others go on
            traceback.print_exc()
            context.emit("failed", f"{phase}: the phase itself", first_line(error))
            context.require_device()
        free(context.device)
        context.emit("compile failures", context.precompiler.failures())
        context.emit("phase", phase, time.monotonic() - started)


def _precompile(context: Context) -> dict[str, list[Variant]]:
    """Ask for everything that the phases will launch, in their order; what to wait for, by phase.

    The tuner's candidates come last, for there are most of them and each is missed by one problem alone.
    """
    if not context.on_gpu:
        return {}
    context.precompiler = Precompiler(capability_of(context.device))
    wanted: dict[str, Callable[[Context], list[Launch]]] = {
        "residency": residency_launches,
        "correctness": correctness_launches,
        "kernels": kernel_launches,
        "blocks": block_launches,
        "network": _network_launches,
        "tune": lambda context: list(candidate_launches(context)),
    }
    groups = {}
    for phase, launches in wanted.items():
        if phase in context.options.deadlines:
            groups[phase] = context.precompiler.add(launches(context))
    groups.pop("tune", None)  # the phase waits for one problem at a time
    return groups


def _network_launches(context: Context) -> list[Launch]:
    launches: list[Launch] = []
    for batch in context.options.batches:
        for kind in ("train", "infer"):
            launches += network_workload_launches(context, Workload(kind, batch))
    return launches + network_workload_launches(context, Workload("infer", 1))

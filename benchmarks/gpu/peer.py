"""A process that compiles one workload with ``torch.compile``, says when it is ready, and runs it when it is asked to.

Compilation takes minutes, most of them on the CPU, so it happens beside the main process's work. Timing does not: the
peer runs only while the main process waits for its answer. The benchmark itself starts
``python -m benchmarks.gpu.peer``.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.gpu_lock import LINGER, LONGEST, GpuLock, hold_while_inductor_times
from benchmarks.gpu.networks import FULL, TINY
from benchmarks.gpu.timing import Call, Contender, contender, peak_memory
from benchmarks.gpu.workloads import COMPILE_MODE, Programs, Setting, Workload, programs
from fused_kernels.tune.timing import first_line

LOCK = "gpu.lock"
WARMUP = 3


def status_path(folder: Path, name: str) -> Path:
    """The file in which a peer says whether it is ready."""
    return folder / f"{name}.json"


def socket_path(folder: Path, name: str) -> Path:
    """The socket on which a peer answers."""
    return folder / f"{name}.sock"


def write_status(folder: Path, name: str, **status: Any) -> None:
    """Replace a peer's status at once, so that a reader never meets half of it."""
    path = status_path(folder, name)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(status), "utf-8")
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, then serve until the connection or the parent ends."""
    asked = _parser().parse_args(arguments)
    _end_with_parent()
    workload = Workload(asked.kind, asked.batch, asked.part)
    folder = asked.folder
    started = time.perf_counter()
    try:
        device = torch.device(asked.device)
        torch.backends.cudnn.benchmark = True
        lock = GpuLock(folder / LOCK, linger=LINGER, longest=LONGEST)
        note = hold_while_inductor_times(lock) if device.type == "cuda" else None
        setting = Setting(device, TINY if asked.tiny else FULL)
        ready = programs(workload, setting, "compiled")
        status = _warmed_up(ready, lock, device)
        contenders = _contenders(ready, lock, device)
    except Exception as error:
        # whatever went wrong, the main process goes on without this peer, and says why
        traceback.print_exc()
        write_status(folder, workload.name, state="failed", reason=first_line(error))
        return
    seconds = time.perf_counter() - started
    notes = [note] if note else []
    mode = COMPILE_MODE if device.type == "cuda" else "eager"
    write_status(folder, workload.name, state="ready", seconds=seconds, notes=notes, mode=mode, **status)
    _serve(str(socket_path(folder, workload.name)), contenders)


def _warmed_up(ready: Programs, lock: GpuLock, device: torch.device) -> dict[str, Any]:
    """Compile by running; the answer first, because a training step changes it."""
    answer = ready.answer().item()
    with lock.held():
        for step in ready.steps.values():
            for _ in range(WARMUP):
                step()
        memory = {name: peak_memory(step, device) for name, step in ready.steps.items()}
    return {"answer": answer, "peak_memory": memory}


def _contenders(ready: Programs, lock: GpuLock, device: torch.device) -> dict[str, Contender]:
    found: dict[str, Contender] = {}
    with lock.held():
        for name, step in ready.steps.items():
            found[name] = contender(step, device)
            found[f"{name}, launched"] = Call(step, device)
    return found


def _serve(address: str, contenders: dict[str, Contender]) -> None:
    """Answer one client after the other; a worker that was started anew connects again."""
    while True:
        with Listener(address, family="AF_UNIX") as listener, listener.accept() as connection:
            try:
                while (request := connection.recv()) is not None:
                    connection.send(_answer(contenders, *request))
            except (EOFError, ConnectionError):
                continue
            return


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, whatever this one is doing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(contenders: dict[str, Contender], name: str, count: int) -> tuple[list[float], list[str]]:
    one = contenders[name]
    return one.times(count), one.notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.peer")
    parser.add_argument("--kind", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--part", default="")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    return parser


if __name__ == "__main__":
    main()

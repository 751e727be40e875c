"""State of a worker that every phase uses, and running one case so that its errors do not end the run."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.gpu_lock import GpuLock
from benchmarks.gpu.networks import Scale
from benchmarks.gpu.options import Options
from benchmarks.gpu.peers import inference_batch
from benchmarks.gpu.precompile import Precompiler
from benchmarks.gpu.workloads import Setting
from fused_kernels.tune.timing import first_line


class DeviceLost(RuntimeError):
    """This process cannot use the GPU any more, for instance after an illegal access; a new process can."""


@dataclass
class Context:
    """One worker's state."""

    options: Options
    setting: Setting
    emit: Callable[..., None]
    """Sends (kind, …) to the command."""
    lock: GpuLock
    finished: set[str]
    """Cases that need not run: done, or begun by a worker that did not survive them."""
    deadline: float = 0.0
    phase: str = ""
    ceilings: Ceilings | None = None
    precompiler: Precompiler = field(default_factory=lambda: Precompiler(None))

    @property
    def device(self) -> torch.device:
        """The device that everything runs on."""
        return self.setting.device

    @property
    def scale(self) -> Scale:
        """The network's sizes."""
        return self.setting.scale

    @property
    def on_gpu(self) -> bool:
        """Whether figures mean anything."""
        return self.device.type == "cuda"

    @property
    def largest(self) -> int:
        """The batch of training's bar."""
        return max(self.options.batches)

    @property
    def inference(self) -> int:
        """The batch of inference's bars."""
        return inference_batch(self.options.batches)

    @property
    def checked(self) -> int:
        """The batch of correctness checks: float64 is slow, and what can go wrong does at a few images."""
        return 2 if self.options.tiny else 8

    def for_rounds(self, seconds: float) -> float:
        """``seconds`` of timing; fewer where the times mean nothing."""
        return seconds if self.on_gpu else seconds / 10

    def left(self) -> float:
        """Seconds of this phase."""
        return self.deadline - time.monotonic()

    def skip(self, name: str, reason: str) -> None:
        """Say that a case, or a part of one, was not measured."""
        self.emit("skipped", f"{self.phase}: {name}", reason)

    def run(self, name: str, section: str, function: Callable[[], dict[str, Any] | None]) -> None:
        """Run one case and send its result to ``section`` of the report.

        A case that fails is reported as wrong; one that lacks time or memory is reported as skipped.

        Raises:
            DeviceLost: this process cannot use the GPU any more.
        """
        full = f"{self.phase}: {name}"
        if full in self.finished or not fnmatchcase(name, self.options.only):
            return
        self.finished.add(full)
        if self.left() <= 0:
            self.skip(name, "no time left for this phase")
            return
        self.emit("begin", full)
        try:
            with self.lock.held():
                result = function()
            if result is not None:
                self.emit("result", section, {"name": name, **result})
        except torch.OutOfMemoryError as error:
            self.skip(name, f"out of memory: {first_line(error)}")
            self._tidy(error)
        except Exception as error:
            # the run goes on, and its exit code tells
            traceback.print_exc()
            self.emit("failed", full, first_line(error))
            self._tidy(error)
        self.require_device()
        self.emit("ended", full)

    def _tidy(self, error: BaseException) -> None:
        """Free the tensors that the frames of ``error`` hold."""
        error.__traceback__ = None
        gc.collect()
        if self.on_gpu:
            self.require_device()
            torch.cuda.empty_cache()

    def require_device(self) -> None:
        """See that the GPU still answers.

        Raises:
            DeviceLost: it does not.
        """
        if not self.on_gpu:
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(first_line(error)) from None

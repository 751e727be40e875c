"""A plan's steps in plain PyTorch on the CPU, which compute what its kernels compute.

In INT8 the sums are exact and the rest is fp32 in the kernels' own order, so the bits are the kernels'. Tests show it
by running the launches themselves in Triton's interpreter. In floating point a GPU adds up in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fused_kernels.launch import implementation
from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.step_executor import StepExecutor
from rescompile.backends.triton.weights import read_weights
from rescompile.engine_files import EngineSource
from rescompile.errors import BackendError


class ReferenceRunner:
    """A plan executed by plain PyTorch; serves one thread at a time. Raises EngineError where weights are damaged."""

    def __init__(self, source: EngineSource, plan: Plan) -> None:
        weights = {name: torch.from_numpy(values) for name, values in read_weights(source, plan).items()}
        self._executor: StepExecutor | None = StepExecutor(plan.steps, weights)

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's layout and dtype.

        Raises:
            BackendError: the runner is closed, or the steps contradict the weights or the images.
        """
        if self._executor is None:
            raise BackendError("this engine is closed; load it again")
        try:
            with torch.inference_mode(), implementation("reference"):
                logits = self._executor(torch.from_numpy(np.ascontiguousarray(images)))
        except (ValueError, RuntimeError) as error:
            # torch and the operations name shapes; in a plan that was built, all of them fit
            raise BackendError(
                f"the plan's steps do not fit its weights or these images ({error}); build the engine again"
            ) from error
        return np.asarray(logits.numpy(), np.float32)

    def close(self) -> None:
        """Drop the weights; calling it twice is harmless."""
        self._executor = None

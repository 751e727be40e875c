"""Profiles of engines: the layers that a library executed, with the time of each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import UsageError
from rescompile.manifest import Manifest

WARM_RUNS = 2
"""Runs before the measured ones."""

Kind = Literal["weighted", "reformat", "quantize", "elementwise", "pool", "other"]
"""Kind of a layer: convolution or classifier; change of layout or type alone; rounding to INT8; and so on."""

PROFILERS = {
    "openvino": "rescompile.backends.openvino.profile:OpenVinoProfiler",
    "tensorrt": "rescompile.backends.tensorrt.profile:full",
    "tensorrt-rtx": "rescompile.backends.tensorrt.profile:rtx",
}
"""Backend to ``module:factory``; the factory takes the arguments of ``open_profiler``."""


@dataclass(frozen=True)
class LayerTime:
    """One executed layer."""

    name: str
    """The library's name for it."""
    origins: tuple[str, ...]
    """Nodes of the deployable graph that it computes; empty where that is not known."""
    kind: Kind
    implementation: str
    """The library's name for the kernel, such as ``jit_avx2_I8``."""
    precision: str
    """Type in which it computes, such as ``u8`` or ``f32``; empty where that is not known."""
    ms: float


class Profiler(Protocol):
    """An engine whose layers are timed; for one thread and one call."""

    def __call__(
        self, images: NDArray[np.generic], runs: int
    ) -> tuple[NDArray[np.float32], tuple[LayerTime, ...]]:
        """Warm up, then run ``images`` ``runs`` times: the last logits, and each layer's mean time in execution order.

        Libraries may report means over all runs since the engine was loaded, so another call needs a new profiler.
        """
        ...

    def close(self) -> None:
        """Free memory and devices; calling it twice is harmless."""
        ...


def open_profiler(source: EngineSource, manifest: Manifest, *, threads: int | None = None) -> Profiler:
    """The engine in ``source``, whose hashes were checked already, with its layers timed.

    Raises:
        UsageError: its backend does not time layers.
        BackendUnavailable: the engine cannot run on this machine.
        BackendError: the payload was refused.
    """
    if manifest.backend not in PROFILERS:
        known = ", ".join(PROFILERS)
        raise UsageError(
            f"{files_in(source).directory} is an engine for {manifest.backend}, whose layers cannot be timed; "
            f"pass engines for {known}, or measure it as a whole with rescompile bench"
        )
    module, _, factory = PROFILERS[manifest.backend].partition(":")
    opened = cast(Callable[..., Profiler], getattr(importlib.import_module(module), factory))
    return opened(source, manifest, threads=threads)

"""Where the time inside an engine goes: the layers that a library executed, each with its time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import UsageError
from rescompile.manifest import Manifest

WARM_RUNS = 2
"""Before the runs whose time counts."""

Kind = Literal["weighted", "reformat", "quantize", "elementwise", "pool", "other"]
"""What a layer does: convolution or classifier; change of layout or type alone; rounding to INT8; the rest."""

PROFILERS = {
    "openvino": "rescompile.backends.openvino.profile:OpenVinoProfiler",
    "tensorrt": "rescompile.backends.tensorrt.profile:full",
    "tensorrt-rtx": "rescompile.backends.tensorrt.profile:rtx",
}
"""Backend to ``module:factory``; a factory is called as ``open_profiler`` is."""


@dataclass(frozen=True)
class LayerTime:
    """One layer that was executed."""

    name: str
    """The library's own."""
    origins: tuple[str, ...]
    """Nodes of the deployable graph that it computes; empty where the library does not tell."""
    kind: Kind
    implementation: str
    """The library's word for the kernel, as ``jit_avx2_I8``."""
    precision: str
    """In which it computes, as ``u8`` or ``f32``; empty where the library does not tell."""
    ms: float


class Profiler(Protocol):
    """An engine that also says where its time goes; for one thread, and for one call."""

    def __call__(
        self, images: NDArray[np.generic], runs: int
    ) -> tuple[NDArray[np.float32], tuple[LayerTime, ...]]:
        """Warm up, then run ``images`` so often; the last logits, and each layer's mean time in the order of execution.

        A library may keep means over all runs since it loaded the engine, so a second call needs a new profiler.
        """
        ...

    def close(self) -> None:
        """Give back memory and devices; calling it twice is harmless."""
        ...


def open_profiler(directory: Path, manifest: Manifest, *, threads: int | None = None) -> Profiler:
    """The engine in ``directory``, its hashes checked already, with its layers timed.

    Raises:
        UsageError: its backend does not tell the time of its layers.
        BackendUnavailable: the engine cannot run on this machine.
        BackendError: the payload was refused.
    """
    if manifest.backend not in PROFILERS:
        known = ", ".join(PROFILERS)
        raise UsageError(
            f"{directory} is an engine for {manifest.backend}, whose layers cannot be timed; "
            f"pass engines for {known}, or measure it as a whole with rescompile bench"
        )
    module, _, factory = PROFILERS[manifest.backend].partition(":")
    opened = cast(Callable[..., Profiler], getattr(importlib.import_module(module), factory))
    return opened(directory, manifest, threads=threads)

"""What a backend is: something that turns the deployable graph into an engine, and an engine into answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import BackendError, UsageError
from rescompile.manifest import Batch, Manifest, Precision

if TYPE_CHECKING:
    from rescompile.backends.zero_copy import DeviceImages

Progress = Callable[[int, int], None]
"""Called with (done, total) during long work."""

RestType = Literal["float32", "float16"]

FullRange = Literal["free", "costs"]
"""What a backend pays for inputs of all 256 values of int8 (``graph.full_range``): nothing; or weights of seven bits,
or twice the work."""

ConstantChannels = Literal["free", "padding", "never"]
"""What a backend pays for ``graph.constant_channels``: nothing, because it takes them away again; nothing in tensors of
at most ``PADDED_CHANNELS``, whose kernels read twice as many channels anyway; or it does not take them."""
PADDED_CHANNELS = 16


@dataclass(frozen=True)
class Int8Support:
    """What a backend's INT8 engines take beside 127 steps behind a ReLU, and what it pays for that."""

    full_range: FullRange = "costs"
    """Inputs that use all 256 values."""
    constant_channels: ConstantChannels = "never"
    """Where convolutions pad such inputs."""


Hint = Literal["latency", "throughput"]
"""Whether one call shall be answered soon, or many at once be answered in little time altogether."""


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine; ``reason`` says why not, or how it would."""

    build: bool
    run: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What ``Backend.build`` is asked for.

    ``target`` is a compute capability such as ``sm_89``, or None for "this machine".
    """

    model: Path
    """The deployable graph, ``model.onnx``."""
    precision: Precision
    batch: Batch
    image_shape: tuple[int, int, int]
    """Input without its batch dimension, in the graph's own layout."""
    target: str | None = None
    timing_cache: Path | None = None
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What ``Backend.build`` wrote into the engine directory."""

    files: tuple[str, ...]
    target: str | None = None
    """The target that the engine was really built for."""
    fused_adds: int | None = None
    """Residual adds that the engine computes inside a convolution; None where it cannot be inspected."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How an engine is run here; nothing of it changes an answer. A backend ignores what it has no use for."""

    threads: int | None = None
    """CPU threads; None leaves the choice to the library."""
    hint: Hint = "latency"
    streams: int | None = None
    """Requests that an engine on a GPU works on at the same time, each in a CUDA stream and in memory of its own; None
    takes 1 for latency and 2 for throughput, so that one is copied while the other is computed."""
    cache: Path | None = None
    """Directory for what the library compiles at load time, so that the next load is faster; None takes the user's
    cache. RESCOMPILE_ENGINE_CACHE=off keeps nothing anywhere."""

    def __post_init__(self) -> None:
        if self.hint not in get_args(Hint):
            raise UsageError(f"the hint {self.hint!r} is unknown; choose {' or '.join(get_args(Hint))}")
        if self.streams is not None and self.streams < 1:
            raise UsageError(f"{self.streams} streams can answer nothing; pass 1 or more")

    @property
    def parallel(self) -> int:
        """Requests that an engine on a GPU works on at the same time."""
        return self.streams or (2 if self.hint == "throughput" else 1)


RUN_DEFAULTS = RunOptions()


def check_batch(count: int, batch: Batch) -> None:
    """Refuse a number of images that an engine does not take at once.

    Raises:
        BackendError: ``count`` is outside of the engine's range.
    """
    if not batch.min <= count <= batch.max:
        raise BackendError(
            f"{count} images at once, but this engine takes {batch.min} to {batch.max}; "
            "pass another number, or build with another --batch"
        )


class Runner(Protocol):
    """An engine in memory. Not thread-safe unless the backend's docstring says so."""

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...], an array in the manifest's input layout and dtype.

        It need not be contiguous. A runner that lends takes what it has lent, too.
        """
        ...

    def close(self) -> None:
        """Give back memory and device handles; calling it twice is harmless."""
        ...


class Backend(Protocol):
    """One kind of engine. Implementations live one per module and are listed in ``rescompile.backends``."""

    name: str
    payload_files: tuple[str, ...]
    """Files without which no engine of this kind is loaded; there may be more."""
    int8: Int8Support

    def availability(self, target: str | None = None) -> Availability:
        """What can be done here, found without building anything; ``run`` is about an engine for ``target``."""
        ...

    def rest_type(self, precision: Precision) -> RestType:
        """The type of every layer of the deployable graph that is not quantized."""
        ...

    def check(self, target: str | None) -> None:
        """Refuse what this backend cannot build here, before any long work starts.

        Raises:
            UsageError: the target does not exist for this backend.
            BackendUnavailable: the backend cannot build on this machine.
        """
        ...

    def build(self, request: BuildRequest, directory: Path) -> Payload:
        """Build the engine into ``directory``.

        Raises:
            BackendError: the library refused the graph; its own words are in the message.
        """
        ...

    def load(self, directory: Path, manifest: Manifest, options: RunOptions = RUN_DEFAULTS) -> Runner:
        """Load the payload in ``directory`` (hashes already checked).

        Raises:
            BackendUnavailable: the engine cannot run on this machine.
            BackendError: the payload was refused.
        """
        ...


@runtime_checkable
class Concurrent(Protocol):
    """A runner that any number of threads may call at once, and close while they do."""

    parallel: int
    """Calls that it works on at the same time; others wait."""


@runtime_checkable
class ZeroCopyRunner(Protocol):
    """A runner on a GPU, which reads images where they are."""

    def import_images(self, given: object) -> DeviceImages:
        """The images of ``given``, for which ``sharing.on_cuda`` holds, as the runner takes them; not copied.

        Raises:
            UsageError: they are on another GPU, not contiguous, or cannot be shared.
            BackendError: the runner is closed, or the driver refuses.
        """
        ...


@runtime_checkable
class CachesCompilation(Protocol):
    """A runner that can keep what its library compiled, so that the next load is faster."""

    def cache_compilation(self) -> None:
        """Keep it; called once the engine has proved that it is right. It never fails: a cache is a shortcut."""
        ...


@runtime_checkable
class SimulatingBackend(Protocol):
    """A backend whose engines can be executed, slowly, where their device is missing."""

    simulation: str
    """What executes them there, as a report names it; no engine is called verified for it."""

    def simulate(self, directory: Path, manifest: Manifest) -> Runner:
        """What gives the answers of the engine in ``directory`` on this CPU.

        Raises:
            BackendError, EngineError: the payload was refused.
        """
        ...

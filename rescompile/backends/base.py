"""Interface of a backend, which builds an engine from the deployable graph and runs engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rescompile.engine_files import EngineSource
from rescompile.errors import BackendError, UsageError
from rescompile.manifest import Batch, CpuForm, Manifest, Precision

if TYPE_CHECKING:
    import onnx

    from rescompile.backends.zero_copy import DeviceImages

Progress = Callable[[int, int], None]
"""Called with (done, total) during long work."""

RestType = Literal["float32", "float16"]
"""Type of the layers that are not quantized."""

FullRange = Literal["free", "costs"]
"""Price of inputs that use all 256 values of int8 (``graph.full_range``): nothing; or weights of seven bits, or twice
the work."""

ConstantChannels = Literal["free", "padding", "never"]
"""Price of ``graph.constant_channels``: nothing, because the backend removes them again; nothing in tensors of at most
``PADDED_CHANNELS`` channels, because its kernels read twice as many channels anyway; or they are not supported."""
PADDED_CHANNELS = 16


@dataclass(frozen=True)
class Int8Support:
    """Features of a backend's INT8 engines beyond plain symmetric quantization, with their price."""

    full_range: FullRange = "costs"
    """Inputs that use all 256 values, instead of 128 after a ReLU."""
    constant_channels: ConstantChannels = "never"
    """Extra channels where a convolution pads such an input."""


Hint = Literal["latency", "throughput"]
"""Goal of running an engine: the shortest time of one call, or the most images in a given time."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can build and run on this machine, and the reason."""

    build: bool
    run: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """Input of ``Backend.build``."""

    model: Path
    """The deployable graph, ``model.onnx``."""
    precision: Precision
    batch: Batch
    image_shape: tuple[int, int, int]
    """One image, without the batch dimension, in the graph's layout."""
    bounds: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    """The smallest and the largest image, where height and width are open in the graph."""
    target: str | None = None
    """Compute capability such as ``sm_89``; None for this machine."""
    timing_cache: Path | None = None
    progress: Progress | None = None

    @property
    def image_range(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The smallest and the largest image."""
        return self.bounds or (self.image_shape, self.image_shape)


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Files that ``Backend.build`` wrote into the engine directory, and what is known of them."""

    files: tuple[str, ...]
    target: str | None = None
    """The target that the engine was built for."""
    fused_adds: int | None = None
    """Residual adds that are computed inside a convolution; None where the engine cannot be inspected."""
    notes: tuple[str, ...] = ()
    """Sentences for the report."""
    cpu_form: CpuForm | None = None
    """The kind of CPU whose form an INT8 engine has."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of running an engine; none changes an answer, and a backend ignores those that it does not have."""

    threads: int | None = None
    """CPU threads; None or 0 leaves it to the library."""
    hint: Hint = "latency"
    streams: int | None = None
    """Requests that an engine works on at the same time. On a GPU each has its own CUDA stream and memory, and None
    takes 1 for latency and 2 for throughput, so that one is copied while the other is computed; on a CPU the streams
    share the threads, and None leaves the number to OpenVINO."""
    cache: Path | str | None = None
    """Directory that keeps what the library compiles at load time, so that the next load is faster; None takes the
    user's cache. RESCOMPILE_ENGINE_CACHE=off keeps nothing."""

    batch: int | None = None
    """Images of most calls. On a CPU such calls are a few percent faster; None takes the size that the engine was tuned
    for, ``manifest.batch.opt``. The first call of another size takes as long as a load."""

    check_finite: bool = True
    """Refuse images with NaN or infinite values, for which a ReLU gives finite answers that mean nothing."""

    def __post_init__(self) -> None:
        if self.hint not in get_args(Hint):
            raise UsageError(f"the hint {self.hint!r} is unknown; choose {' or '.join(get_args(Hint))}")
        for name in ("threads", "streams", "batch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (int, np.integer)) or isinstance(value, bool)):
                raise UsageError(f"{name}={value!r} is not a whole number; pass one, or None")
            object.__setattr__(self, name, value if value is None else int(value))
        if self.threads is not None and self.threads < 0:
            raise UsageError(f"{self.threads} threads compute nothing; pass 1 or more, or None")
        if self.streams is not None and self.streams < 1:
            raise UsageError(f"{self.streams} streams can answer nothing; pass 1 or more")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"a batch of {self.batch} images has no answer; pass 1 or more")
        if not isinstance(self.check_finite, (bool, np.bool_)):
            raise UsageError(
                f"check_finite={self.check_finite!r} is neither True nor False; pass one of them"
            )
        if self.cache is not None and not isinstance(self.cache, (str, Path)):
            raise UsageError(
                f"cache={self.cache!r} is not a path; pass the folder for compiled engines, or None"
            )

    @property
    def cache_folder(self) -> Path | None:
        """``cache`` as a path; None where the user's cache is meant."""
        return Path(self.cache) if self.cache else None

    @property
    def parallel(self) -> int:
        """``streams``, or the number that the hint gives."""
        return self.streams or (2 if self.hint == "throughput" else 1)


RUN_DEFAULTS = RunOptions()


def check_batch(count: int, batch: Batch) -> None:
    """Raise a BackendError where an engine does not take ``count`` images at once."""
    if not batch.min <= count <= batch.max:
        raise BackendError(
            f"{count} images at once, but this engine takes {batch.min} to {batch.max}; "
            "pass another number, or build with another --batch"
        )


class Runner(Protocol):
    """An engine in memory. Not thread-safe unless its docstring says so."""

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...], an array in the manifest's input layout and dtype.

        It need not be contiguous. A ``ZeroCopyRunner`` also takes images that it imported.
        """
        ...

    def close(self) -> None:
        """Free memory and device handles; calling it twice is harmless."""
        ...


@runtime_checkable
class SeveralOutputs(Protocol):
    """A runner whose engines may have several outputs."""

    def tensors(self, images: Any) -> dict[str, NDArray[np.float32]]:
        """All outputs by name for ``images`` [N, ...], as in ``Runner``."""
        ...


class Backend(Protocol):
    """One kind of engine. Implementations are listed in ``rescompile.backends``."""

    name: str
    payload_files: tuple[str, ...]
    """Files that every engine of this kind has; there may be more."""

    @property
    def int8(self) -> Int8Support:
        """Features of its INT8 engines."""
        ...

    def availability(self, target: str | None = None) -> Availability:
        """Whether it can build here, and run an engine for ``target``; found without building anything."""
        ...

    def rest_type(self, precision: Precision) -> RestType:
        """Type of the layers of the deployable graph that are not quantized."""
        ...

    def check(self, target: str | None) -> None:
        """Check before any long work that an engine for ``target`` can be built here.

        Raises:
            UsageError: the target does not exist for this backend.
            BackendUnavailable: the backend cannot build on this machine.
        """
        ...

    def build(self, request: BuildRequest, directory: Path) -> Payload:
        """Build the engine into ``directory``.

        Raises:
            BackendError: the library refused the graph; its message is included.
            OutputError: the disk is full.
        """
        ...

    def load(self, source: EngineSource, manifest: Manifest, options: RunOptions = RUN_DEFAULTS) -> Runner:
        """Load the payload in ``source``, whose hashes were checked already.

        Raises:
            BackendUnavailable: the engine cannot run on this machine.
            BackendError: the payload was refused.
        """
        ...


@runtime_checkable
class Concurrent(Protocol):
    """A runner that any number of threads may call at the same time, and close meanwhile."""

    parallel: int
    """Calls that run at the same time; others wait."""


@runtime_checkable
class ZeroCopyRunner(Protocol):
    """A runner on a GPU that reads images where they are in its memory."""

    def import_images(self, given: object) -> DeviceImages:
        """The images of ``given``, an array on a CUDA device, as the runner takes them, without a copy.

        Raises:
            UsageError: they are on another GPU, not contiguous, or cannot be shared.
            BackendError: the runner is closed, or the driver refuses.
        """
        ...


@runtime_checkable
class CachesCompilation(Protocol):
    """A runner that can store what its library compiled, so that the next load is faster."""

    def cache_compilation(self) -> None:
        """Store the compilation; called after the engine passed its self-test. It never fails."""
        ...

    def forget_compilation(self) -> bool:
        """Remove the compilation from the cache if it came from there; returns whether the next load compiles."""
        ...


@runtime_checkable
class CompilesLater(Protocol):
    """A runner that compiles a part of its engine at the first call that needs it."""

    fixed: int | None
    """The batch size of calls that need nothing more; None where no call does."""

    def check_later(self, check: Callable[[Runner], None]) -> None:
        """Give what is compiled later to ``check``, which raises an EngineError where its answers are wrong."""
        ...


@runtime_checkable
class SelectiveBackend(Protocol):
    """A backend whose kernels compute some networks only."""

    def reasons_against(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Everything in the folded fp32 graph ``model`` that it cannot build; asked before calibration."""
        ...


@runtime_checkable
class HasCpuForms(Protocol):
    """A backend whose INT8 engines have a form for each kind of CPU."""

    def in_form(self, form: CpuForm) -> Backend:
        """The backend that builds INT8 engines of this form, instead of this machine's."""
        ...

    def more_files(self, form: CpuForm | None) -> tuple[str, ...]:
        """Files besides ``payload_files`` that an engine of this form needs on this CPU."""
        ...


class Parts(Protocol):
    """An engine that can be executed in parts; its tensors have the names of the deployable graph."""

    names: frozenset[str]
    """The tensors that the engine still has."""

    def run(self, given: Mapping[str, NDArray[Any]], wanted: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The ``wanted`` tensors, made from the ``given`` ones by the engine's own layers.

        ``given`` has the engine's input, and may have inner tensors [N, ...] to use in place of what makes them; N may
        be any number.

        Raises:
            BackendError: the library refuses the part.
        """
        ...


@runtime_checkable
class RunsParts(Protocol):
    """A backend whose engines are checked block by block at build time.

    The others have no inner tensors to feed once they are built, or are the deployable graph itself.
    """

    def parts(self, directory: Path) -> Parts:
        """The engine in ``directory``, as ``load`` would compile it, ready to be cut."""
        ...


@runtime_checkable
class SimulatingBackend(Protocol):
    """A backend that can execute its engines slowly on the CPU where their device is missing."""

    simulation: str
    """Name of the stand-in for reports; an engine that only ran on it is not called verified."""

    def simulate(self, source: EngineSource, manifest: Manifest) -> Runner:
        """A runner that gives the answers of the engine in ``source`` on the CPU.

        Raises:
            BackendError, EngineError: the payload was refused.
        """
        ...

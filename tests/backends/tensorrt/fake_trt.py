"""A fake of TensorRT's Python module, with the part that the backend uses.

The classes in ``API`` and the enumerations in ``ENUMS`` have the real names; their public members are those of the real
ones, which ``test_fake_trt`` checks. What a test sets or reads of a build is in ``FakeTrt``, of executions in
``FakeNetwork``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tests.backends.cuda.fake_cuda import FakeCuda


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class BuilderFlag(enum.IntEnum):
    TF32 = 6


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0


class ComputeCapability(enum.IntEnum):
    NONE, CURRENT, SM120, SM75, SM86, SM80, SM89 = 0, 1, 120, 75, 86, 80, 89


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.IntEnum):
    DETAILED = 2


class LayerInformationFormat(enum.IntEnum):
    JSON = 1


class ILogger:
    Severity = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class ParserError:
    def __init__(self, name: str, operator: str, text: str) -> None:
        self._name, self._operator, self._text = name, operator, text

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._text


class IOptimizationProfile:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - the library's own names
        self._trt.asked.profile[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"+timings"


class IBuilderConfig:
    profiling_verbosity: ProfilingVerbosity
    progress_monitor: IProgressMonitor
    num_compute_capabilities: int

    def __init__(self, trt: FakeTrt) -> None:
        self._trt, self._cache = trt, ITimingCache(b"")

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._trt.asked.flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._trt.asked.limits[pool] = pool_size

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        self._trt.asked.capabilities[index] = compute_capability
        return self._trt.accepts_target

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return self._trt.profile_index

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if serialized_timing_cache == b"garbage" else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content == b"other gpu":
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


@dataclass
class ITensor:
    name: str = "images"
    shape: tuple[int, ...] = (-1, 3, 16, 16)


class INetworkDefinition:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def get_input(self, index: int) -> ITensor:
        return self._trt.images


class Builder:
    def __init__(self, trt: FakeTrt, logger: ILogger) -> None:
        self._trt, trt.logger = trt, logger

    def create_network(self, flags: int) -> INetworkDefinition:
        self._trt.asked.network_flags = flags
        return INetworkDefinition(self._trt)

    def create_builder_config(self) -> IBuilderConfig:
        self._trt.config = IBuilderConfig(self._trt)
        return self._trt.config

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile(self._trt)

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        for severity, message in self._trt.messages:
            self._trt.logger.log(severity, message)
        monitor = config.progress_monitor
        for kind, phase, number in self._trt.steps:
            if kind == "start":
                monitor.phase_start(phase, None, number)
            elif kind == "finish":
                monitor.phase_finish(phase)
            elif not monitor.step_complete(phase, number):
                return None
        return self._trt.engine


class OnnxParser:
    def __init__(self, trt: FakeTrt, network: INetworkDefinition, logger: ILogger) -> None:
        self._trt = trt

    def parse(self, model: bytes) -> bool:
        self._trt.asked.model = model
        return not self._trt.errors

    @property
    def num_errors(self) -> int:
        return len(self._trt.errors)

    def get_error(self, index: int) -> ParserError:
        return self._trt.errors[index]


class EngineInspector:
    def __init__(self, trt: FakeTrt) -> None:
        self._trt = trt

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002
        assert format == LayerInformationFormat.JSON
        return self._trt.layers


class ICudaEngine:
    def __init__(self, trt: Any) -> None:
        self._trt = trt

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._trt)

    def create_execution_context(self) -> IExecutionContext | None:
        made: IExecutionContext | None = self._trt.unless_refused("context", IExecutionContext(self._trt))
        self._trt.contexts += [made] if made is not None else []
        return made


class IExecutionContext:
    """Each output is the sum over the image, plus the place of the value, times the place of the output from 1."""

    profiler: IProfiler | None = None

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory % 256 == 0 and name not in self._network.refused

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return "shape" not in self._network.refused

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Maps of two channels and half of the image's sides."""
        batch, _, height, width = self._shape
        return batch, 2, height // 2, width // 2

    def execute_async_v3(self, stream_handle: int) -> bool:
        network, gpu, shape = self._network, self._network.gpu, self._shape
        answered = [self._addresses[name] for name in network.outputs]
        fed = next(address for name, address in self._addresses.items() if name not in network.outputs)
        network.executed.append((stream_handle, fed, shape))
        if self.profiler is not None:
            for name, ms in network.reported:
                self.profiler.report_layer_time(name, ms * len(network.executed))
        size = int(np.prod(shape)) * 4

        def compute() -> None:
            images = gpu.at(fed, size).view(np.float32).reshape(shape[0], -1)
            sums = images.sum(axis=1, keepdims=True)
            # an output of no values of its own follows from the image
            counts = [count or shape[2] * shape[3] // 2 for count in network.outputs.values()]
            for place, (address, count) in enumerate(zip(answered, counts, strict=True), 1):
                values = ((sums + np.arange(count)) * place).astype(np.float32)
                gpu.at(address, values.nbytes)[...] = values.reshape(-1).view(np.uint8)

        gpu.enqueue(gpu.streams[stream_handle], compute)
        return "execute" not in network.refused


class Runtime:
    def __init__(self, trt: Any, logger: ILogger) -> None:
        self._trt, trt.logger = trt, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        made: ICudaEngine | None = self._trt.unless_refused("engine", ICudaEngine(self._trt))
        return made


API = (
    ILogger, IProgressMonitor, IProfiler, ParserError, IOptimizationProfile, ITimingCache, IBuilderConfig, ITensor,
    INetworkDefinition, Builder, OnnxParser, EngineInspector, ICudaEngine, IExecutionContext, Runtime,
)  # fmt: skip
ENUMS = (
    BuilderFlag, NetworkDefinitionCreationFlag, ComputeCapability, MemoryPoolType, ProfilingVerbosity,
    LayerInformationFormat,
)  # fmt: skip


@dataclass
class Asked:
    """Requests of a build."""

    network_flags: int | None = None
    model: bytes = b""
    flags: set[BuilderFlag] = field(default_factory=lambda: {BuilderFlag.TF32})
    limits: dict[MemoryPoolType, int] = field(default_factory=dict)
    capabilities: dict[int, ComputeCapability] = field(default_factory=dict)
    profile: dict[str, tuple[Any, ...]] = field(default_factory=dict)


class FakeTrt:
    """The module; attributes set by a test decide how a build goes."""

    def __init__(self, version: str = "10.13.2", name: str = "tensorrt") -> None:
        self.__version__, self.__name__ = version, name
        for each in (*API, *ENUMS):
            setattr(self, each.__name__, each)
        for each in (Builder, OnnxParser, Runtime):
            setattr(self, each.__name__, partial(each, self))
        self.asked, self.images = Asked(), ITensor()
        self.config: IBuilderConfig
        self.logger: Any = None
        self.errors: list[ParserError] = []
        self.messages: list[tuple[Severity, str]] = []
        self.steps: list[tuple[str, str, int]] = []
        self.engine: bytes | None = b"engine"
        self.accepts_target, self.profile_index = True, 0
        self.layers = '{"Layers": []}'
        self.refused: set[str] = set()
        """Requests that it refuses: engine, context, shape, execute, or the name of a tensor."""

    def unless_refused(self, what: str, made: Any) -> Any:
        """``made``, or None after an error in the log."""
        if what not in self.refused:
            return made
        self.logger.log(Severity.ERROR, f"no {what} here")
        return None


class FakeNetwork(FakeTrt):
    """The module, whose engines are executed on a fake GPU."""

    def __init__(self, gpu: FakeCuda, classes: int, **more_outputs: int) -> None:
        super().__init__()
        self.gpu = gpu
        self.outputs = {"logits": classes, **more_outputs}
        """Values of each output for one image."""
        self.contexts: list[IExecutionContext] = []
        self.executed: list[tuple[int, int, tuple[int, ...]]] = []
        """Stream, address and shape of the images of every inference."""
        self.reported: list[tuple[str, float]] = []
        """Layers that a profiler is told of, with milliseconds times the number of the inference."""

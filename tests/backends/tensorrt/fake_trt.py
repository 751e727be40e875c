"""As much of TensorRT's Python module as the backend touches, for what needs neither library nor GPU."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.backends.cuda.fake_cuda import FakeCuda


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class IProgressMonitor:
    pass


class IProfiler:
    pass


class BuilderFlag(enum.IntEnum):
    TF32 = 5


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ComputeCapability(enum.IntEnum):
    NONE, CURRENT, SM120, SM75, SM86, SM80, SM89 = 0, 1, 120, 75, 86, 80, 89


@dataclass
class Error:
    name: str
    operator: str
    text: str

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator

    def desc(self) -> str:
        return self.text


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class Config:
    def __init__(self, trt: FakeTrt) -> None:
        self.trt = trt
        self.profiles: list[Profile] = []
        self.flags = {BuilderFlag.TF32}
        self.limits: dict[str, int] = {}
        self.cache: bytes | None = None
        self.profiling_verbosity = self.progress_monitor = None
        self.num_compute_capabilities = 0
        self.capabilities: dict[int, ComputeCapability] = {}

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        self.capabilities[index] = capability
        return self.trt.accepts_target

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return self.trt.profile_index

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content == b"garbage" else content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        if cache == b"other gpu":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: (self.cache or b"") + b"+timings")


class FakeTrt:
    """The module; attributes set by a test decide how a build goes."""

    ILogger, IProgressMonitor, IProfiler = ILogger, IProgressMonitor, IProfiler
    BuilderFlag, ComputeCapability = BuilderFlag, ComputeCapability
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, version: str = "10.13.2", name: str = "tensorrt") -> None:
        self.__version__, self.__name__ = version, name
        self.errors: list[Error] = []
        self.messages: list[tuple[Severity, str]] = []
        self.steps: list[tuple[str, str, int]] = []
        self.engine: bytes | None = b"engine"
        self.accepts_target, self.profile_index = True, 0
        self.layers = '{"Layers": []}'
        self.network_flags: int | None = None
        self.config = Config(self)
        self.images = SimpleNamespace(name="images", shape=(-1, 3, 16, 16))
        self.parsed = b""

    def Builder(self, logger: Any) -> FakeTrt:  # noqa: N802 - the library's own name
        self.logger = logger
        return self

    def OnnxParser(self, network: Any, logger: Any) -> FakeTrt:  # noqa: N802
        return self

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        inspector = SimpleNamespace(get_engine_information=lambda form: self.layers)
        loaded = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda engine: loaded)

    def create_network(self, flags: int) -> Any:
        self.network_flags = flags
        return SimpleNamespace(get_input=lambda index: self.images)

    def create_builder_config(self) -> Config:
        return self.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def parse(self, content: bytes) -> bool:
        self.parsed = content
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Error:
        return self.errors[index]

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        for severity, message in self.messages:
            self.logger.log(severity, message)
        monitor: Any = config.progress_monitor
        for kind, phase, number in self.steps:
            if kind == "start":
                monitor.phase_start(phase, None, number)
            elif kind == "finish":
                monitor.phase_finish(phase)
            elif not monitor.step_complete(phase, number):
                return None
        return self.engine


class ExecutionContext:
    """One context of ``FakeNetwork``: logits are sums over each image, plus the class number."""

    def __init__(self, network: FakeNetwork) -> None:
        self.network = network
        self.profiler: Any = None
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0 and name not in self.network.refused

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return "shape" not in self.network.refused

    def execute_async_v3(self, handle: int) -> bool:
        gpu, shape = self.network.gpu, self.shape
        answered = self.addresses["logits"]
        fed = next(address for name, address in self.addresses.items() if name != "logits")
        self.network.executed.append((handle, fed, shape))
        for name, ms in self.network.reported if self.profiler is not None else ():
            self.profiler.report_layer_time(name, ms * len(self.network.executed))
        size = int(np.prod(shape)) * 4

        def compute() -> None:
            images = gpu.at(fed, size).view(np.float32).reshape(shape[0], -1)
            logits = images.sum(axis=1, keepdims=True) + np.arange(self.network.classes, dtype=np.float32)
            gpu.at(answered, logits.nbytes)[...] = logits.astype(np.float32).reshape(-1).view(np.uint8)

        gpu.enqueue(gpu.streams[handle], compute)
        return "execute" not in self.network.refused


class FakeNetwork(FakeTrt):
    """The module, whose engines are executed on a fake GPU."""

    def __init__(self, gpu: FakeCuda, classes: int) -> None:
        super().__init__()
        self.gpu, self.classes = gpu, classes
        self.contexts: list[ExecutionContext] = []
        self.executed: list[tuple[int, int, tuple[int, ...]]] = []
        """Stream, address and shape of the images of every inference."""
        self.reported: list[tuple[str, float]] = []
        """Layers of which a profiler is told, with milliseconds times the number of the inference."""
        self.refused: set[str] = set()
        """What it does not do: engine, context, shape, execute, or the name of a tensor."""

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=lambda content: self._refusing("engine", self))

    def create_execution_context(self) -> ExecutionContext | None:
        made: ExecutionContext | None = self._refusing("context", ExecutionContext(self))
        self.contexts += [made] if made is not None else []
        return made

    def _refusing(self, what: str, made: Any) -> Any:
        if what not in self.refused:
            return made
        self.logger.log(Severity.ERROR, f"no {what} here")
        return None

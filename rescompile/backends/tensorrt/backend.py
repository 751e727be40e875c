"""TensorRT and TensorRT for RTX: one code path over two modules with the same Python API.

The network is strongly typed, so precision comes from the graph alone. TensorRT builds for the GPU that is present.
TensorRT for RTX builds ahead of time for a target, without any GPU.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from rescompile.backends import base
from rescompile.backends.cuda import devices
from rescompile.backends.cuda.devices import Gpu
from rescompile.backends.cuda.driver import open_driver
from rescompile.backends.tensorrt.callbacks import joined_messages, make_logger, make_monitor
from rescompile.backends.tensorrt.inspector import fused_adds
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError, BackendUnavailable, UsageError, did_you_mean
from rescompile.files import atomic_write, writing
from rescompile.manifest import TENSORRT_ENGINE as ENGINE
from rescompile.manifest import Manifest, Precision
from rescompile.optional import require

OLDEST = (10, 12)
"""First full TensorRT whose strongly typed networks take our graphs; the older API is gone in 11."""
WORKSPACE_BYTES = 1 << 30
"""More than any convolution of a ResNet asks for, and little enough for a shared GPU."""
RTX_DEFAULT = "compute capability 8.0, 8.6, 8.9, 12.0 and later"
_UNKNOWN_TO_RTX = {
    "sm_90": "H100, H200 and GH200 are not RTX GPUs",
    "sm_100": "B200 and GB200 are not RTX GPUs",
}


def full() -> TensorRt:
    """The backend TensorRT, which builds for the GPU of this machine."""
    return TensorRt("tensorrt")


def rtx() -> TensorRt:
    """The backend TensorRT for RTX, which builds for a target without a GPU."""
    return TensorRt("tensorrt_rtx")


class TensorRt:
    """The backend of ``module``. Any number of threads may call a runner."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.name = module.replace("_", "-")
        self.payload_files = (ENGINE,)
        self.int8 = base.Int8Support("free", "padding")
        self.is_rtx = module == "tensorrt_rtx"

    def availability(self, target: str | None = None) -> base.Availability:
        """TensorRT needs a GPU to build and to run, TensorRT for RTX only to run."""
        try:
            trt = self.library()
        except BackendUnavailable as error:
            return base.Availability(build=False, run=False, reason=str(error))
        what = f"{self.module} {trt.__version__}"
        found = devices.gpus()
        if not found:
            needs = "to run an engine" if self.is_rtx else "to build or run one"
            reason = f"{what} is installed, but {needs} it needs a CUDA GPU, and there is none"
            return base.Availability(build=self.is_rtx, run=False, reason=reason)
        here = f"{what} and {found[0].name} ({found[0].capability}) are here"
        obstacle = self._obstacle_to_run(trt, found[0], target)
        if obstacle is not None:
            return base.Availability(build=True, run=False, reason=f"{here}, but {obstacle}")
        return base.Availability(build=True, run=True, reason=here)

    def rest_type(self, precision: Precision) -> base.RestType:
        """FP16 around INT8: the GPU's tensor cores compute FP32 several times slower."""
        return "float32" if precision == "fp32" else "float16"

    def check(self, target: str | None) -> None:
        """Check that this library and machine can build for ``target``: see ``Backend.check``."""
        trt = self.library()
        if self.is_rtx:
            _check_rtx_target(trt, target)
            return
        gpu = _require_gpu("building a TensorRT engine")
        if target not in (None, gpu.capability):
            raise UsageError(
                f"--target {target} is not the GPU of this machine ({gpu.name}, {gpu.capability}), and "
                "TensorRT builds for that only; leave --target out, or pass --backend tensorrt-rtx"
            )

    def build(self, request: base.BuildRequest, directory: Path) -> base.Payload:
        """Write ``model.engine``.

        Raises:
            BackendError: the parser or the builder refuses the graph; their messages are included.
            OutputError: the disk is full.
        """
        self.check(request.target)
        trt = self.library()
        logger = make_logger(trt)
        builder = trt.Builder(logger)
        network, _parser = self._parse(trt, builder, logger, request)
        config = builder.create_builder_config()
        monitor = make_monitor(trt, request.progress)
        notes = self._configure(trt, config, monitor, request)
        _set_batch(builder, config, network, request)
        engine = builder.build_serialized_network(network, config)
        monitor.raise_pending()
        if engine is None:
            raise BackendError(f"{self.name} cannot build the engine: {joined_messages(logger.errors)}")
        atomic_write(directory / ENGINE, memoryview(engine))
        if not self.is_rtx and request.timing_cache is not None:
            with writing(request.timing_cache):
                request.timing_cache.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(request.timing_cache, memoryview(config.get_timing_cache().serialize()))
        target = request.target if self.is_rtx else devices.gpus()[0].capability
        return base.Payload(
            files=(ENGINE,),
            target=target,
            fused_adds=self._inspect(trt, logger, engine, request),
            notes=(*notes, *logger.notes()),
        )

    def load(
        self, source: EngineSource, manifest: Manifest, options: base.RunOptions = base.RUN_DEFAULTS
    ) -> Any:
        """A ``TensorRtRunner`` on the first GPU."""
        from rescompile.backends.tensorrt.runner import TensorRtRunner

        trt, files = self.library(), files_in(source)
        obstacle = self._obstacle_to_run(trt, _require_gpu(f"running a {self.name} engine"), manifest.target)
        if obstacle is not None:
            raise BackendUnavailable(f"the engine in {files.directory} cannot run here: {obstacle}")
        return TensorRtRunner(trt, open_driver(), files.read(ENGINE), manifest, parallel=options.parallel)

    def library(self) -> Any:
        """The module itself; raises BackendUnavailable where it is missing or too old."""
        trt = require(self.module, f"the backend {self.name}")
        if not self.is_rtx and _version(trt) < OLDEST:
            raise BackendUnavailable(
                f"TensorRT {trt.__version__} is too old, rescompile needs 10.12 or newer: "
                "run pip install 'rescompile[tensorrt]'"
            )
        return trt

    def _obstacle_to_run(self, trt: Any, gpu: Gpu, target: str | None) -> str | None:
        """Why an engine for ``target`` does not run on ``gpu``; None where nothing is known against it."""
        obstacle = devices.target_obstacle(gpu, target)
        if obstacle is None and self.is_rtx and gpu.capability not in rtx_targets(trt):
            return f"TensorRT for RTX does not run on {gpu.capability}"
        return obstacle

    def _parse(self, trt: Any, builder: Any, logger: Any, request: base.BuildRequest) -> tuple[Any, Any]:
        """The network of ``request.model``, and its parser, which owns the weights and must outlive the network."""
        typed = not self.is_rtx and _version(trt) < (11, 0)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(self._graph(request)):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            said = [f"node '{e.node_name()}' ({e.node_operator()}): {e.desc()}" for e in errors]
            raise BackendError(
                f"{self.name} cannot read the deployable graph: {joined_messages(said or logger.errors)}"
            )
        return network, parser

    def _graph(self, request: base.BuildRequest) -> bytes:
        """The serialized graph to parse."""
        if not (self.is_rtx and request.target == "sm_75" and request.precision == "fp32"):
            return request.model.read_bytes()
        import onnx

        from rescompile.backends.tensorrt.lowering import classifier_as_convolution

        # RTX refuses it otherwise: "Cannot compile operation for Turing: FP32 GEMM is not supported"
        lowered: bytes = classifier_as_convolution(onnx.load(request.model)).SerializeToString()
        return lowered

    def _configure(self, trt: Any, config: Any, monitor: Any, request: base.BuildRequest) -> tuple[str, ...]:
        """Set all options except the batch; returns notes."""
        # TF32 would round FP32 inputs to 10 bits
        config.clear_flag(trt.BuilderFlag.TF32)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = monitor
        if not self.is_rtx:
            return _use_timing_cache(config, request.timing_cache)
        if request.target is None:
            return (f"no --target was passed, so the engine is for {RTX_DEFAULT}",)
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, _member(request.target))
        if not config.set_compute_capability(capability, 0):
            raise BackendError(f"tensorrt-rtx {trt.__version__} refuses the target {request.target}")
        return ()

    def _inspect(self, trt: Any, logger: Any, engine: Any, request: base.BuildRequest) -> int | None:
        """Number of residual adds inside convolutions; None without a GPU that can load the engine."""
        found = devices.gpus()
        if not found or self._obstacle_to_run(trt, found[0], request.target) is not None:
            return None
        loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
        if loaded is None:
            return None
        text = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        return fused_adds(text, request.model, integer=request.precision == "int8")


def rtx_targets(trt: Any) -> list[str]:
    """All targets of this TensorRT for RTX, such as ``sm_75``, in ascending order."""
    numbers = [int(name[2:]) for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"sm_{number}" for number in sorted(numbers)]


def _check_rtx_target(trt: Any, target: str | None) -> None:
    known = rtx_targets(trt)
    if target is None or target in known:
        return
    if target in _UNKNOWN_TO_RTX:
        raise UsageError(
            f"TensorRT for RTX has no {target} ({_UNKNOWN_TO_RTX[target]}): choose one of {', '.join(known)}, "
            "or pass --backend tensorrt on a machine with such a GPU"
        )
    raise UsageError(
        f"--target {target} is unknown to TensorRT for RTX {trt.__version__}; choose one of {', '.join(known)}."
        f"{did_you_mean(target, known)}"
    )


def _member(target: str) -> str:
    return target.replace("_", "").upper()


def _version(trt: Any) -> tuple[int, int]:
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def _require_gpu(purpose: str) -> Gpu:
    remedy = (
        ": pass --backend openvino for this CPU, or --backend tensorrt-rtx --target sm_89 to build for another "
        "machine"
    )
    return devices.require_gpu(purpose, remedy)


def _use_timing_cache(config: Any, path: Path | None) -> tuple[str, ...]:
    """Let ``config`` use the timings of earlier builds, unless they are of another GPU or version; returns notes."""
    if path is None:
        return ()
    earlier = b""
    with suppress(FileNotFoundError):
        earlier = path.read_bytes()
    cache = config.create_timing_cache(earlier)
    if cache is not None and config.set_timing_cache(cache, False):
        return ()
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return (f"the timing cache {path} is of another GPU or TensorRT, so timing began anew",)


def _set_batch(builder: Any, config: Any, network: Any, request: base.BuildRequest) -> None:
    """Set one fixed shape, or an optimization profile over the ranges of batch, height and width."""
    images, batch, (smallest, largest) = network.get_input(0), request.batch, request.image_range
    if batch.min == batch.max and smallest == largest:
        images.shape = (batch.min, *request.image_shape)
        return
    profile = builder.create_optimization_profile()
    shapes = [(batch.min, *smallest), (batch.opt, *request.image_shape), (batch.max, *largest)]
    profile.set_shape(images.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(
            f"images from {list(shapes[0])} to {list(shapes[2])} do not fit the graph's input {images.shape}"
        )

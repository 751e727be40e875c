"""OpenVINO on the CPU.

Precision stays what the graph says. OpenVINO would compute FP32 layers in BF16 on CPUs that have it, so it is told
to infer in f32; INT8 layers stay INT8. The INT8 graph is lowered first (``openvino_lowering``).

One compilation serves every batch size of the engine: with ResNet-50 it was as fast as a compilation for one fixed
size, at batch 1 and at batch 8, and took the same 0.4 seconds to load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import (
    RUN_DEFAULTS,
    Availability,
    BuildRequest,
    Hint,
    Int8Support,
    Payload,
    RestType,
    RunOptions,
    check_batch,
)
from rescompile.backends.onnxruntime import refuse_target
from rescompile.backends.openvino.cache import CompiledModels, compiled_models
from rescompile.backends.resource_pool import ResourcePool
from rescompile.backends.zero_copy import writable_view
from rescompile.errors import BackendError, EngineError
from rescompile.files import check_room
from rescompile.manifest import OPENVINO_MODEL as MODEL
from rescompile.manifest import OPENVINO_WEIGHTS as WEIGHTS
from rescompile.manifest import Batch, Manifest, Precision

if TYPE_CHECKING:
    import onnx


_TUNING = {"SNIPPETS_MODE": "DISABLE"}
"""Not in OpenVINO's manual: with its fusion of elementwise chains on, an identity block's add is no longer fused
into the convolution before it. The numbers are the same to the bit."""


class OpenVino:
    """The CPU engine. Any number of threads may call a runner."""

    name = "openvino"
    payload_files = (MODEL, WEIGHTS)
    int8 = Int8Support("costs", "free")

    def availability(self, target: str | None = None) -> Availability:
        """Always there: OpenVINO is a dependency of the project."""
        return Availability(build=True, run=True, reason="OpenVINO runs on every x86-64 and Arm CPU")

    def rest_type(self, precision: Precision) -> RestType:
        """FP16 only where it was asked for: the CPU computes in FP32."""
        return "float16" if precision == "fp16" else "float32"

    def check(self, target: str | None) -> None:
        """Refuse a target: see ``Backend.check``."""
        refuse_target(self.name, target)

    def build(self, request: BuildRequest, directory: Path) -> Payload:
        """Write ``model.xml`` and ``model.bin``, then compile them here and look what became of the graph.

        Raises:
            BackendError: OpenVINO refuses the graph; its own words are in the message.
            OutputError: the disk is full.
        """
        import onnx

        from rescompile.backends.openvino.lowering import lower

        graph = lower(onnx.load(request.model))
        _save(graph, request, directory)
        compiled, hidden = _compile(directory / MODEL, RUN_DEFAULTS)
        return _inspect(graph, compiled, request.precision, notes=hidden)

    def load(self, directory: Path, manifest: Manifest, options: RunOptions = RUN_DEFAULTS) -> OpenVinoRunner:
        """Compile the payload for this CPU, or take what an earlier load kept; ``options`` give threads and cache."""
        kept = compiled_models(manifest, (MODEL, WEIGHTS), options, _settings(options) | _TUNING)
        found = None if kept is None else kept.read()
        if found is not None:
            _check_ports(directory / MODEL, found, manifest)
            return OpenVinoRunner(found, manifest.batch, hint=options.hint)
        compiled, hidden = _compile(directory / MODEL, options)
        _check_ports(directory / MODEL, compiled, manifest)
        # settings that this OpenVINO does not know would be asked of what was kept, too
        keeper = None if hidden else kept
        return OpenVinoRunner(compiled, manifest.batch, hint=options.hint, kept=keeper)


class OpenVinoRunner:
    """A compiled model with its inference requests. Any number of threads may call it.

    It has one request for latency, and for throughput as many as OpenVINO advises for this CPU. A call takes an idle
    one or waits for it.
    """

    def __init__(
        self,
        compiled: Any,
        batch: Batch,
        *,
        hint: Hint = "latency",
        kept: CompiledModels | None = None,
    ) -> None:
        import openvino as ov

        self._tensor = ov.Tensor
        advised = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if hint == "throughput" else 1
        self.parallel = int(advised)
        self._compiled: Any = compiled
        self._requests = ResourcePool([compiled.create_infer_request() for _ in range(self.parallel)])
        self._batch, self._kept = batch, kept

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's layout and dtype; they are not copied.

        Raises:
            BackendError: N is outside of the engine's batch range, or the runner is closed.
        """
        check_batch(len(images), self._batch)
        with self._requests.acquire() as request, translate_errors("OpenVINO cannot run this engine"):
            # not infer([images]): its way to a tensor takes longer than all of ours
            request.set_input_tensor(self._tensor(writable_view(images), shared_memory=True))
            request.infer(share_outputs=True)
            return np.array(request.get_output_tensor().data, np.float32)

    def cache_compilation(self) -> None:
        """Keep the compiled model for the next load, where it was compiled by this one."""
        if self._kept is not None and self._compiled is not None:
            self._kept.write(self._compiled)

    def close(self) -> None:
        """Drop the requests and the compiled model; calls that run are finished, calling it twice is harmless."""
        self._compiled = None
        self._requests.close()


_ELEMENTS = {"float32": "f32", "uint8": "u8"}


def _check_ports(path: Path, compiled: Any, manifest: Manifest) -> None:
    """Refuse a network that is not the one of the manifest.

    Raises:
        EngineError: its input or output has another shape, type or range of batch sizes.
    """
    batch, fed, answered = manifest.batch, manifest.inputs[0], manifest.outputs[0]
    expected = [[(batch.min, batch.max), *((size, size) for size in fed.shape[1:])], _ELEMENTS[fed.dtype]]
    if len(compiled.inputs) == 1 and len(compiled.outputs) == 1:
        port, logits = compiled.input(0), compiled.output(0)
        sizes = [(size.get_min_length(), size.get_max_length()) for size in port.get_partial_shape()]
        classes = logits.get_partial_shape()[-1]
        if [sizes, port.get_element_type().get_type_name()] == expected and classes == answered.shape[-1]:
            return
    raise EngineError(f"{path} does not fit the manifest; build the engine again")


def simulate(model: onnx.ModelProto, batch: Batch) -> OpenVinoRunner:
    """A deployable graph executed as its OpenVINO engine would, without one being written.

    Raises:
        BackendError: OpenVINO refuses the graph; its own words are in the message.
    """
    import openvino as ov

    from rescompile.backends.openvino.lowering import lower

    with translate_errors("OpenVINO cannot read the deployable graph"):
        compiled, _ = _compile_model(ov.Core().read_model(lower(model).SerializeToString()), RUN_DEFAULTS)
    return OpenVinoRunner(compiled, batch)


_CLIPS = {"Clamp", "Minimum"}
"""What OpenVINO makes of an ONNX Clip."""


class OpenVinoTensors:
    """An engine that also gives inner tensors, which are outputs of its model in memory; for one thread.

    An output more changes what OpenVINO fuses around it, so sums may be rounded otherwise than in the engine alone.

    Raises:
        BackendError: OpenVINO refuses the payload; its own words are in the message.
    """

    def __init__(self, directory: Path, batch: Batch, tensors: Sequence[str]) -> None:
        import openvino as ov

        path = directory / MODEL
        with translate_errors(f"OpenVINO cannot load {path}"):
            model = ov.Core().read_model(path)
            ports = {
                name: port for op in model.get_ops() for port in op.outputs() for name in port.get_names()
            }
            present = {name for output in model.outputs for name in output.get_names()}
            self.names = tuple(name for name in dict.fromkeys(tensors) if name in ports)
            """Those of ``tensors`` that the model has."""
            self.clipped = {name for name in self.names if ports[name].get_node().get_type_name() in _CLIPS}
            """Those that the lowering clips at the largest value of the quantizer behind them."""
            model.add_outputs([name for name in self.names if name not in present])
            compiled, _ = _compile_model(model, RUN_DEFAULTS)
            self._request: Any = compiled.create_infer_request()
        self._count = batch.min

    def __call__(self, image: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """Tensors [...] by name of one ``image`` [...] in the engine's layout and dtype.

        Raises:
            BackendError: OpenVINO cannot run the model on it.
        """
        images = np.repeat(image[None], self._count, axis=0)
        with translate_errors("OpenVINO cannot run this engine"):
            self._request.infer([images])
            return {name: np.array(self._request.get_tensor(name).data[0], np.float32) for name in self.names}


def _save(graph: onnx.ModelProto, request: BuildRequest, directory: Path) -> None:
    """Write the graph as OpenVINO's own format, for the batch sizes of ``request``."""
    import openvino as ov

    serialized = graph.SerializeToString()
    with translate_errors("OpenVINO cannot read the deployable graph"):
        model = ov.Core().read_model(serialized)
        low, high = request.batch.min, request.batch.max
        batch = ov.Dimension(low) if low == high else ov.Dimension(low, high)
        model.reshape(ov.PartialShape([batch, *request.image_shape]))
    try:
        # the constants keep their types: compressing them would round FP32 weights that the user asked for
        ov.save_model(model, directory / MODEL, compress_to_fp16=False)
    except RuntimeError as error:
        # C++ streams do not say why they failed
        check_room(directory, len(serialized))
        raise BackendError(f"OpenVINO cannot write {directory / MODEL}: {error_reason(error)}") from error


def compile_counting(path: Path, *, threads: int | None) -> Any:
    """The model at ``path`` compiled as for running it, with the performance counters of its layers on.

    Raises:
        BackendError: OpenVINO refuses it; its own words are in the message.
    """
    import openvino as ov

    with translate_errors(f"OpenVINO cannot load {path}"):
        model = ov.Core().read_model(path)
        return _compile_model(model, RunOptions(threads=threads), counters=True)[0]


def compile_plainly(path: Path, options: RunOptions) -> Any:
    """The model at ``path`` compiled as for running it.

    Raises:
        BackendError: OpenVINO refuses it; its own words are in the message.
    """
    return _compile(path, options)[0]


def _compile(path: Path, options: RunOptions) -> tuple[Any, tuple[str, ...]]:
    """The model at ``path`` compiled for this CPU, and notes on what could not be set."""
    import openvino as ov

    with translate_errors(f"OpenVINO cannot load {path}"):
        return _compile_model(ov.Core().read_model(path), options)


def _settings(options: RunOptions) -> dict[str, Any]:
    """What every version of OpenVINO is told."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": options.hint.upper(),
    }
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    return settings


def _compile_model(model: Any, options: RunOptions, *, counters: bool = False) -> tuple[Any, tuple[str, ...]]:
    import openvino as ov

    core = ov.Core()
    settings = _settings(options) | ({"PERF_COUNT": "YES"} if counters else {})
    try:
        return core.compile_model(model, "CPU", settings | _TUNING), ()
    except RuntimeError as error:
        if not any(key in str(error) for key in _TUNING):
            raise
    return core.compile_model(model, "CPU", settings), (
        f"OpenVINO {ov.__version__} does not know {', '.join(_TUNING)}: fewer residual adds are fused",
    )


def _inspect(
    graph: onnx.ModelProto, compiled: Any, precision: Precision, *, notes: tuple[str, ...]
) -> Payload:
    """What the compiled model executes: residual adds inside convolutions, INT8 layers, notes on the rest."""
    layers = [
        {key: str(value.value) for key, value in node.get_rt_info().items()}
        for node in compiled.get_runtime_model().get_ordered_ops()
    ]
    weighted = [layer for layer in layers if layer["layerType"] in {"Convolution", "FullyConnected"}]
    fused = {name for layer in weighted for name in layer["originalLayersNames"].split(",")}
    adds = residual_adds(graph)
    if precision == "fp16":
        notes += (
            "FP16 weights, computed in FP32: OpenVINO's CPU engine is told not to round between layers",
        )
    integer = sum(layer["runtimePrecision"] in {"u8", "i8"} for layer in weighted)
    meant = quantized_layers(graph)
    if integer < meant:
        notes += (f"{meant - integer} of {meant} quantized layers do not run as INT8 on this CPU",)
    return Payload(files=(MODEL, WEIGHTS), fused_adds=len(adds & fused), notes=notes)


def quantized_layers(graph: onnx.ModelProto) -> int:
    """Convolutions and classifiers with INT8 weights."""
    held = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    weighted = (node for node in graph.graph.node if node.op_type in {"Conv", "Gemm"})
    return sum(node.input[1] in held for node in weighted)


def residual_adds(graph: onnx.ModelProto) -> set[str]:
    """Names of the Adds of two computed tensors, which OpenVINO calls its layers by."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    adds = (node for node in graph.graph.node if node.op_type == "Add")
    return {node.name for node in adds if not constants & set(node.input)}


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn an error of OpenVINO's into a BackendError that begins with ``what``."""
    try:
        yield
    except RuntimeError as error:
        raise BackendError(f"{what}: {error_reason(error)}") from error


def error_reason(error: RuntimeError) -> str:
    """The reason in OpenVINO's message, behind the lines that say where in its source it was raised."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    where = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't", "Summary")
    said = [line for line in lines if line and not line.startswith(where)]
    return said[0] if said else (lines[0] if lines else "no reason given")

"""The OpenVINO backend, for CPUs.

Precision stays what the graph says: float layers infer in f32, INT8 layers stay INT8, and the INT8 graph is lowered
first. One compilation serves every batch size of the engine: with ResNet-50 it was as fast as a compilation for one
fixed size, at batch 1 and at batch 8, and took the same 0.4 seconds to load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescompile.backends import base
from rescompile.backends.cpu import forms
from rescompile.backends.inspection import quantized_layers, residual_adds
from rescompile.backends.onnxruntime import refuse_target
from rescompile.backends.openvino.cache import compiled_models
from rescompile.backends.openvino.compile import compile_noting, error_reason, settings_of, translate_errors
from rescompile.backends.openvino.executable import executable
from rescompile.backends.openvino.parts import OpenVinoParts
from rescompile.backends.openvino.runner import OpenVinoRunner
from rescompile.engine_files import EngineFiles, EngineSource, files_in
from rescompile.errors import BackendError, EngineError
from rescompile.files import check_room
from rescompile.manifest import GRAPH, OPENVINO_MODEL, OPENVINO_WEIGHTS, CpuForm, Manifest, Precision

if TYPE_CHECKING:
    import onnx

_FILES = (OPENVINO_MODEL, OPENVINO_WEIGHTS)
_ELEMENTS = {"float32": "f32", "uint8": "u8"}
"""OpenVINO's names of types."""


class OpenVino:
    """The CPU engine. Any number of threads may call a runner."""

    name = "openvino"
    payload_files = _FILES

    def __init__(self, form: CpuForm | None = None) -> None:
        self._form = form

    @property
    def form(self) -> CpuForm:
        """The form of INT8 engines: the one that was asked for, or this machine's."""
        return self._form or forms.machine_form()

    def in_form(self, form: CpuForm) -> OpenVino:
        """The backend that builds INT8 engines of this form."""
        return OpenVino(form)

    def more_files(self, form: CpuForm | None) -> tuple[str, ...]:
        """The deployable graph, where it must be lowered again."""
        return () if forms.computes_exactly(form) else (GRAPH,)

    @property
    def int8(self) -> base.Int8Support:
        """Features of INT8 engines: all 256 values cost nothing where products are added in 32 bits."""
        return base.Int8Support("costs" if self.form == "avx2" else "free", "free")

    def availability(self, target: str | None = None) -> base.Availability:
        """Always available: OpenVINO is a dependency of the project."""
        return base.Availability(build=True, run=True, reason="OpenVINO runs on every x86-64 and Arm CPU")

    def rest_type(self, precision: Precision) -> base.RestType:
        """FP16 only where asked for: the CPU computes in FP32."""
        return "float16" if precision == "fp16" else "float32"

    def check(self, target: str | None) -> None:
        """Raise a UsageError where there is a target."""
        refuse_target(self.name, target)

    def build(self, request: base.BuildRequest, directory: Path) -> base.Payload:
        """Write ``model.xml`` and ``model.bin``, then compile them here to see how the graph is executed."""
        import onnx

        from rescompile.backends.cpu.lowering import lower

        form = self.form if request.precision == "int8" else None
        graph = lower(onnx.load(request.model), form or "avx2")
        _save(graph, request, directory)
        # as it is stored, although this CPU may saturate: only its layers are looked at
        compiled, notes = _compile(files_in(directory), None, base.RUN_DEFAULTS)
        if form:
            notes += (forms.note_on(form, asked=self._form is not None),)
        return replace(_inspect(graph, compiled, request.precision, notes=notes), cpu_form=form)

    def load(
        self, source: EngineSource, manifest: Manifest, options: base.RunOptions = base.RUN_DEFAULTS
    ) -> OpenVinoRunner:
        """Compile the payload for this CPU, or take what an earlier load stored."""
        files = files_in(source)
        path = files.path(OPENVINO_MODEL)
        cache = compiled_models(
            files, (*_FILES, *self.more_files(manifest.cpu_form)), options, settings_of(options)
        )
        compiled = None if cache is None else cache.read()
        stored, notes = compiled is not None, tuple[str, ...]()
        if compiled is None:
            compiled, notes = _compile(files, manifest.cpu_form, options)
        _check_ports(path, compiled, manifest)
        # a setting that this OpenVINO does not know would be asked of the stored model, too
        return OpenVinoRunner(
            compiled,
            manifest.batch,
            several=options.hint == "throughput" or options.streams is not None,
            cache=None if notes else cache,
            from_cache=stored,
        )

    def parts(self, directory: Path) -> OpenVinoParts:
        """The engine's layers between any of its tensors: see ``base.RunsParts``."""
        return OpenVinoParts(directory, self.form)


def _compile(
    files: EngineFiles, form: CpuForm | None, options: base.RunOptions
) -> tuple[Any, tuple[str, ...]]:
    with translate_errors(f"OpenVINO cannot load {files.path(OPENVINO_MODEL)}"):
        return compile_noting(executable(files, form), options)


def _check_ports(path: Path, compiled: Any, manifest: Manifest) -> None:
    """Raise an EngineError where input or output have another shape, type or range of batch sizes than the manifest."""
    batch, images, sizes = manifest.batch, manifest.inputs[0], manifest.sizes
    ends = [images.shape[1:]] * 2 if sizes is None else [images.of_size(sizes.min), images.of_size(sizes.max)]
    bounds = [(batch.min, batch.max), *zip(*ends, strict=True)]
    if len(compiled.inputs) == 1 and len(compiled.outputs) == len(manifest.outputs):
        port = compiled.input(0)
        answered = [
            output.matches(tuple(port.get_partial_shape()))
            for output, port in zip(manifest.outputs, compiled.outputs, strict=True)
        ]
        found = [(size.get_min_length(), size.get_max_length()) for size in port.get_partial_shape()]
        element = port.get_element_type().get_type_name()
        if (found, element) == (bounds, _ELEMENTS[images.dtype]) and all(answered):
            return
    raise EngineError(f"{path} does not fit the manifest; build the engine again")


def _save(graph: onnx.ModelProto, request: base.BuildRequest, directory: Path) -> None:
    """Write the graph in OpenVINO's format, for the batch and image sizes of ``request``."""
    import openvino as ov

    serialized = graph.SerializeToString()
    with translate_errors("OpenVINO cannot read the deployable graph"):
        model = ov.Core().read_model(serialized)
        smallest, largest = request.image_range
        lows, highs = (request.batch.min, *smallest), (request.batch.max, *largest)
        model.reshape(ov.PartialShape([ov.Dimension(*ends) for ends in zip(lows, highs, strict=True)]))
    try:
        # the constants keep their types: compressing them would round FP32 weights that the user asked for
        ov.save_model(model, directory / OPENVINO_MODEL, compress_to_fp16=False)
    except RuntimeError as error:
        # C++ streams do not say why they failed
        check_room(directory, len(serialized))
        raise BackendError(
            f"OpenVINO cannot write {directory / OPENVINO_MODEL}: {error_reason(error)}"
        ) from error


def _inspect(
    graph: onnx.ModelProto, compiled: Any, precision: Precision, *, notes: tuple[str, ...]
) -> base.Payload:
    """The payload with what the compiled model executes: fused residual adds, and notes on layers not in INT8."""
    layers = [
        {key: str(value.value) for key, value in node.get_rt_info().items()}
        for node in compiled.get_runtime_model().get_ordered_ops()
    ]
    weighted = [layer for layer in layers if layer["layerType"] in {"Convolution", "FullyConnected"}]
    fused = {name for layer in weighted for name in layer["originalLayersNames"].split(",")}
    if precision == "fp16":
        notes += (
            "FP16 weights, computed in FP32: OpenVINO's CPU engine is told not to round between layers",
        )
    integer = sum(layer["runtimePrecision"] in {"u8", "i8"} for layer in weighted)
    meant = quantized_layers(graph)
    if integer < meant:
        notes += (f"{meant - integer} of {meant} quantized layers do not run as INT8 on this CPU",)
    return base.Payload(files=_FILES, fused_adds=len(residual_adds(graph) & fused), notes=notes)

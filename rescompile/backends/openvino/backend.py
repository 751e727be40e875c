"""The OpenVINO backend, for CPUs.

Precision stays what the graph says: float layers infer in f32, INT8 layers stay INT8, and the INT8 graph is lowered
first. ``compilation`` says which batch sizes get a compiled model of their own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescompile.backends import base
from rescompile.backends.cpu import forms
from rescompile.backends.inspection import quantized_layers, residual_adds
from rescompile.backends.onnxruntime import refuse_target
from rescompile.backends.openvino.compilation import EngineCompiler
from rescompile.backends.openvino.compile import compile_noting, error_reason, translate_errors
from rescompile.backends.openvino.executable import executable
from rescompile.backends.openvino.parts import OpenVinoParts
from rescompile.backends.openvino.runner import OpenVinoRunner
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError
from rescompile.files import check_room
from rescompile.manifest import GRAPH, OPENVINO_MODEL, OPENVINO_WEIGHTS, CpuForm, Manifest, Precision

if TYPE_CHECKING:
    import onnx

_FILES = (OPENVINO_MODEL, OPENVINO_WEIGHTS)


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
        with translate_errors(f"OpenVINO cannot load {directory / OPENVINO_MODEL}"):
            compiled, notes = compile_noting(executable(directory, None))
        if form:
            notes += (forms.note_on(form, asked=self._form is not None),)
        return replace(_inspect(graph, compiled, request.precision, notes=notes), cpu_form=form)

    def load(
        self, source: EngineSource, manifest: Manifest, options: base.RunOptions = base.RUN_DEFAULTS
    ) -> OpenVinoRunner:
        """Compile the payload for this CPU and its usual batch size, or take what an earlier load stored."""
        names = (*_FILES, *self.more_files(manifest.cpu_form))
        compiler = EngineCompiler(files_in(source), names, manifest, options)
        return OpenVinoRunner(
            compiler.first(),
            manifest.batch,
            fixed=compiler.fixed,
            rest=compiler.for_later().rest,
            options=options,
        )

    def parts(self, directory: Path) -> OpenVinoParts:
        """The engine's layers between any of its tensors: see ``base.RunsParts``."""
        return OpenVinoParts(directory, self.form)


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

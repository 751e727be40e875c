"""ONNX Runtime on the CPU: the reference for all other backends, and a backend of its own.

With optimizations off it executes a deployable graph node by node, Q/DQ in floating point, as the graph is written.
FP16 tensors are computed in FP32 and rounded to FP16 after each node, because the CPU has no FP16 kernels. FP32 graphs
run optimized, and so do INT8 engines, in a form of their own (``onnxruntime_form``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.onnx_session import open_session
from rescompile.backends import base
from rescompile.backends.cpu import forms
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError, UsageError
from rescompile.files import atomic_write
from rescompile.graph.shared.hazards import hazard_in, hazard_of
from rescompile.manifest import GRAPH, ONNXRUNTIME_MODEL, CpuForm, Manifest, Precision
from rescompile.optional import how_to_install, installed, require
from rescompile.wording import counted

if TYPE_CHECKING:
    import onnx

WRONG_OPTIMIZERS = ("Pad_Fusion",)
"""ONNX Runtime's rewrites that change answers: zeros around an image become minus infinity in a max pool."""


class ReferenceSession:
    """An ONNX graph with one input, loaded. Several threads may call it."""

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session: Any = session
        self._input: str = session.get_inputs()[0].name
        self._names = list(names)

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the graph's layout and dtype."""
        logits = next(iter(self.tensors(images).values()))
        return logits.astype(np.float32, copy=False)

    def tensors(
        self, images: NDArray[np.generic], names: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """All outputs, or those of ``names``, by name.

        Raises:
            BackendError: it is closed, or ONNX Runtime refuses the images.
        """
        names = self._names if names is None else names
        if self._session is None:
            raise BackendError("this ONNX Runtime session is closed; load the engine again")
        with _translate_errors("ONNX Runtime cannot run the graph on these images"):
            values = self._session.run(names, {self._input: np.ascontiguousarray(images)})
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Drop the session; calling it twice is harmless."""
        self._session = None


def reference_session(
    model: Path | bytes | onnx.ModelProto,
    *,
    optimize: bool,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    spin: bool = False,
) -> ReferenceSession:
    """Load ``model``: a path, a serialized graph, or one in memory.

    Args:
        model: fp32 graph, or deployable graph.
        optimize: True for fp32 graphs; False executes the graph as it is written.
        outputs: tensors to return, which may be inner ones; None takes the graph's outputs.
        threads: CPU threads; None leaves it to ONNX Runtime.
        spin: idle threads wait for the next call at full load. That suits an engine, which runs alone; the sessions of
            a build would take the CPU from each other and from what runs between their calls.

    Raises:
        BackendError: ONNX Runtime refuses the graph; its message is included.
    """
    ort = require("onnxruntime", "running an ONNX graph")

    def options() -> Any:
        made, level = ort.SessionOptions(), ort.GraphOptimizationLevel
        made.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        made.log_severity_level = 4  # what it would print as an error, its exception says
        made.intra_op_num_threads = threads or 0
        made.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        return made

    # read here, because ONNX Runtime opens no file whose name is not UTF-8
    source = model.read_bytes() if isinstance(model, Path) else model
    if words := hazard_of(source) if isinstance(source, bytes) else hazard_in(source):
        # files would be looked for in the working directory
        raise BackendError(f"the graph {words}; use another graph")
    if isinstance(source, bytes) and outputs is not None:
        import onnx

        source = onnx.load_from_string(source)
    if not isinstance(source, bytes):
        _check_has(source, outputs or ())
    with _translate_errors(f"ONNX Runtime cannot load {model if isinstance(model, Path) else 'the graph'}"):
        session = open_session(
            source,
            options,
            outputs=outputs,
            disabled_optimizers=WRONG_OPTIMIZERS,
            providers=["CPUExecutionProvider"],
        )
    names = outputs if outputs is not None else [output.name for output in session.get_outputs()]
    return ReferenceSession(session, names)


class OnnxRuntime:
    """Engines of ONNX Runtime. Several threads may call a runner.

    The engine is the deployable graph itself, but in INT8 on a CPU with VNNI: there it is ``onnxruntime.onnx``, which
    runs with integer kernels.
    """

    name = "onnxruntime"
    payload_files = (GRAPH,)

    def __init__(self, form: CpuForm | None = None) -> None:
        self._form = form

    @property
    def form(self) -> CpuForm:
        """The form of INT8 engines: the one that was asked for, or this machine's."""
        return self._form or forms.machine_form()

    def in_form(self, form: CpuForm) -> OnnxRuntime:
        """The backend that builds INT8 engines of this form."""
        return OnnxRuntime(form)

    def more_files(self, form: CpuForm | None) -> tuple[str, ...]:
        """The graph for integer kernels, where they are exact on this CPU."""
        fused = form not in (None, "avx2") and forms.computes_exactly(form)
        return (ONNXRUNTIME_MODEL,) if fused else ()

    @property
    def int8(self) -> base.Int8Support:
        """Features of INT8 engines: integer kernels take zero points as they are."""
        if self.form == "avx2":
            return base.Int8Support("costs", "never")
        return base.Int8Support("free", "free")

    def availability(self, target: str | None = None) -> base.Availability:
        """Available wherever ONNX Runtime is installed."""
        if not installed("onnxruntime"):
            return base.Availability(
                build=False, run=False, reason=f"ONNX Runtime is missing: run {how_to_install('onnxruntime')}"
            )
        return base.Availability(
            build=True, run=True, reason="runs on every CPU; INT8 is fast on those with VNNI"
        )

    def rest_type(self, precision: Precision) -> base.RestType:
        """FP16 only where asked for: the CPU computes in FP32."""
        return "float16" if precision == "fp16" else "float32"

    def check(self, target: str | None) -> None:
        """Raise a UsageError where there is a target."""
        refuse_target(self.name, target)

    def build(self, request: base.BuildRequest, directory: Path) -> base.Payload:
        """Check that ONNX Runtime accepts the deployable graph, and write ``onnxruntime.onnx`` where it has one."""
        reference_session(request.model, optimize=False).close()
        if request.model.resolve() != (directory / GRAPH).resolve():
            raise ValueError(f"the onnxruntime engine is {GRAPH} of its own directory, not {request.model}")
        if request.precision != "int8":
            return base.Payload(files=(GRAPH,))
        notes: tuple[str, ...] = (forms.note_on(self.form, asked=self._form is not None),)
        if self.form == "avx2":
            return base.Payload(files=(GRAPH,), notes=notes, cpu_form=self.form)
        import onnx

        from rescompile.backends.onnxruntime_form import lower_for_onnxruntime

        lowered, rounded = lower_for_onnxruntime(onnx.load(request.model), self.form)
        serialized = lowered.SerializeToString()
        reference_session(serialized, optimize=True).close()
        atomic_write(directory / ONNXRUNTIME_MODEL, serialized)
        if rounded:
            notes += (f"ONNX Runtime rounds the branch of {counted(rounded, 'residual addition')} once more",)
        return base.Payload(files=(GRAPH, ONNXRUNTIME_MODEL), notes=notes, cpu_form=self.form)

    def load(
        self, source: EngineSource, manifest: Manifest, options: base.RunOptions = base.RUN_DEFAULTS
    ) -> ReferenceSession:
        """Load ``onnxruntime.onnx`` where this CPU computes it exactly, else ``model.onnx``, optimizations off."""
        files, fused = files_in(source), self.more_files(manifest.cpu_form)
        if not fused and ONNXRUNTIME_MODEL in manifest.files:
            warnings.warn(
                f"{files.path(ONNXRUNTIME_MODEL)} has the form {manifest.cpu_form}, which this CPU does not compute "
                f"exactly: {GRAPH} runs instead, which is slower; build with --backend openvino on this CPU",
                stacklevel=2,
            )
        graph = files.read(fused[0] if fused else GRAPH)
        return reference_session(graph, optimize=bool(fused), threads=options.threads, spin=True)


def refuse_target(name: str, target: str | None) -> None:
    """Raise a UsageError where a ``target`` was given to a CPU backend."""
    if target is not None:
        raise UsageError(
            f"--target {target} does not go with --backend {name}, which builds for the CPU; leave it out, "
            "or pass --backend tensorrt-rtx"
        )


def with_outputs(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph with ``outputs`` in place of its own.

    Raises:
        BackendError: the graph has no such tensor.
    """
    import onnx

    _check_has(model, outputs)
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.output[:]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return found


def _check_has(model: onnx.ModelProto, tensors: Sequence[str]) -> None:
    known = {name for node in model.graph.node for name in node.output}
    missing = [name for name in tensors if name not in known]
    if missing:
        raise BackendError(f"the graph has no tensor '{missing[0]}', so it cannot be returned")


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Turn an error of ONNX Runtime into a BackendError that begins with ``what``."""
    try:
        yield
    except Exception as error:
        # its errors have no base class of their own, only a module
        of_runtime = type(error).__module__.startswith("onnxruntime")
        if not of_runtime and not isinstance(error, (RuntimeError, ValueError)):
            raise
        words = str(error).rpartition("[ONNXRuntimeError] : ")[2].splitlines() or [type(error).__name__]
        raise BackendError(f"{what}: {words[0].strip()}") from error

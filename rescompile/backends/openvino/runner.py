"""Compiled OpenVINO models that answer: an engine, a graph that was never written, an engine's inner tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import RUN_DEFAULTS, Runner, RunOptions, check_batch
from rescompile.backends.cpu import forms
from rescompile.backends.openvino.compilation import Compilation
from rescompile.backends.openvino.compile import check_not_forked, compile_model, translate_errors
from rescompile.backends.openvino.executable import executable
from rescompile.backends.resource_pool import ResourcePool
from rescompile.backends.zero_copy import writable_view
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError, EngineError
from rescompile.manifest import OPENVINO_MODEL, Batch, Manifest

if TYPE_CHECKING:
    import onnx

_CLIPS = {"Clamp", "Minimum"}
"""OpenVINO's types for an ONNX Clip."""


class _Requests:
    """Inference requests for one caller at a time: one for each compiled model."""

    def __init__(self, compilation: Compilation) -> None:
        self._made = {compilation: compilation.model.create_infer_request()}

    def of(self, compilation: Compilation) -> Any:
        """The request of a compiled model, made at the first call."""
        if compilation not in self._made:
            self._made[compilation] = compilation.model.create_infer_request()
        return self._made[compilation]


class OpenVinoRunner:
    """A compiled model with its inference requests. Any number of threads may call it.

    It answers one call at a time for latency, and for throughput as many as OpenVINO advises for this CPU; others wait.

    Args:
        compilation: the compiled model.
        batch: the batch sizes that the runner takes.
        fixed: the only batch size of the compiled model; None where it takes all.
        rest: compiles a model for all batch sizes, at the first call of another one than ``fixed``.
        options: with which it was compiled.
    """

    def __init__(
        self,
        compilation: Compilation,
        batch: Batch,
        *,
        fixed: int | None = None,
        rest: Callable[[], Compilation] | None = None,
        options: RunOptions = RUN_DEFAULTS,
    ) -> None:
        import openvino as ov

        self._tensor, self._options = ov.Tensor, options
        several = options.hint == "throughput" or options.streams is not None
        model = compilation.model
        self.parallel = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if several else 1
        self._first = compilation
        self.fixed, self._batch = fixed, batch
        self._rest: Compilation | None = None
        self._compile_rest = rest
        self._check: Callable[[Runner], None] | None = None
        self._compiling = RLock()  # a signal handler may close the runner
        self._requests = ResourcePool([_Requests(compilation) for _ in range(self.parallel)])

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's layout and dtype, which are not copied.

        Raises:
            BackendError: N is outside of the engine's batch range, or the runner is closed.
            EngineError: what had to be compiled for N does not give the golden answers.
        """
        compilation = self._compiled_for(len(images))
        slot = self._requests.slot()
        with slot.lock, translate_errors("OpenVINO cannot run this engine"):
            request = slot.resource().of(compilation)
            # the tensor does not keep its array alive, which is a copy where ``images`` are not contiguous
            shared = writable_view(images)
            # not infer([images]), which takes longer to make a tensor than all of this
            request.set_input_tensor(self._tensor(shared, shared_memory=True))
            request.infer(share_outputs=True)
            # a runner of several outputs gives the first where it is called as one of logits
            return np.array(request.get_output_tensor(0).data, np.float32)

    def tensors(self, images: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name; otherwise like a call."""
        compilation = self._compiled_for(len(images))
        slot = self._requests.slot()
        with slot.lock, translate_errors("OpenVINO cannot run this engine"):
            request, shared = slot.resource().of(compilation), writable_view(images)
            request.set_input_tensor(self._tensor(shared, shared_memory=True))
            found = request.infer(share_outputs=True)
            return {_name_of(port): np.array(values, np.float32) for port, values in found.items()}

    def check_later(self, check: Callable[[Runner], None]) -> None:
        """See ``base.CompilesLater``."""
        self._check = check

    def cache_compilation(self) -> None:
        """Store the compiled model for the next load, unless it came from there."""
        self._first.store()

    def forget_compilation(self) -> bool:
        """Remove the compiled model from the cache if it came from there; returns whether the next load compiles."""
        return self._first.forget()

    def close(self) -> None:
        """Drop the requests and the compiled models; running calls are finished, calling it twice is harmless."""
        self._requests.close()
        with self._compiling:
            self._first.close()
            self._rest = self._compile_rest = None

    def _compiled_for(self, count: int) -> Compilation:
        """The compiled model for ``count`` images, which is compiled now if it is needed for the first time."""
        check_batch(count, self._batch)
        if self._options.threads != 1:  # one thread is the caller's own
            check_not_forked()
        found = self._first if self.fixed in (None, count) else self._rest
        return found or self._compiled_now()

    def _compiled_now(self) -> Compilation:
        # other threads' calls go on meanwhile, unless they need the same
        with self._compiling:
            if self._rest is None:
                if self._compile_rest is None:
                    raise BackendError("this engine is closed; load it again")
                self._rest = self._checked(self._compile_rest)
            return self._rest

    def _checked(self, compiled: Callable[[], Compilation]) -> Compilation:
        """What ``compiled`` returns, once it has passed the check."""
        found = compiled()
        if self._check is None:  # the engine was loaded without verification: nothing of it is stored
            return found
        # the check calls it from one thread
        options = replace(self._options, hint="latency", streams=None)
        try:
            self._check(OpenVinoRunner(found, self._batch, options=options))
        except EngineError:
            if not found.forget():
                raise
            # what the cache held was wrong, not the engine: compile it
            found = compiled()
            self._check(OpenVinoRunner(found, self._batch, options=options))
        found.store()
        return found


def _name_of(port: Any) -> str:
    """The name that the graph gives an output; its tensor may have others, of nodes that OpenVINO took out."""
    return str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")


def simulate(model: onnx.ModelProto, batch: Batch) -> OpenVinoRunner:
    """A deployable graph executed as its OpenVINO engine would be, without writing one.

    Raises:
        BackendError: OpenVINO refuses the graph; its message is included.
    """
    from rescompile.backends.cpu.lowering import lower

    with translate_errors("OpenVINO cannot read the deployable graph"):
        compiled = compile_model(lower(model, forms.machine_form()).SerializeToString())
        return OpenVinoRunner(Compilation(compiled), batch)


class OpenVinoTensors:
    """An engine whose inner tensors are outputs of its model in memory; for one thread.

    Another output changes what OpenVINO fuses around it, so sums may be rounded differently than in the engine.

    Raises:
        BackendError: OpenVINO refuses the payload; its message is included.
    """

    def __init__(self, source: EngineSource, manifest: Manifest, tensors: Sequence[str]) -> None:
        path = files_in(source).path(OPENVINO_MODEL)
        with translate_errors(f"OpenVINO cannot load {path}"):
            model = executable(source, manifest.cpu_form)
            ports = {
                name: port for op in model.get_ops() for port in op.outputs() for name in port.get_names()
            }
            present = {name for output in model.outputs for name in output.get_names()}
            self.names = tuple(name for name in dict.fromkeys(tensors) if name in ports)
            """The ``tensors`` that the model has."""
            self.clipped = {name for name in self.names if ports[name].get_node().get_type_name() in _CLIPS}
            """The ``names`` that the lowering clips at the largest value of the quantizer behind them."""
            model.add_outputs([name for name in self.names if name not in present])
            self._request: Any = compile_model(model).create_infer_request()
        self._count = manifest.batch.min

    def __call__(self, image: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """Tensors [...] by name of one ``image`` [...] in the engine's layout and dtype.

        Raises:
            BackendError: OpenVINO cannot run the model on it.
        """
        images = np.repeat(image[None], self._count, axis=0)
        with translate_errors("OpenVINO cannot run this engine"):
            self._request.infer([images])
            return {name: np.array(self._request.get_tensor(name).data[0], np.float32) for name in self.names}

"""Compiled OpenVINO models that answer: an engine, a graph that was never written, an engine's inner tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import check_batch
from rescompile.backends.cpu import forms
from rescompile.backends.openvino.cache import CompiledModels
from rescompile.backends.openvino.compile import compile_model, translate_errors
from rescompile.backends.openvino.executable import executable
from rescompile.backends.resource_pool import ResourcePool
from rescompile.backends.zero_copy import writable_view
from rescompile.engine_files import EngineSource, files_in
from rescompile.manifest import OPENVINO_MODEL, Batch, Manifest

if TYPE_CHECKING:
    import onnx

_CLIPS = {"Clamp", "Minimum"}
"""OpenVINO's types for an ONNX Clip."""


class OpenVinoRunner:
    """A compiled model with its inference requests. Any number of threads may call it.

    It has one request for latency, and for throughput as many as OpenVINO advises for this CPU. A call takes a free one
    or waits for it.
    """

    def __init__(
        self,
        compiled: Any,
        batch: Batch,
        *,
        several: bool = False,
        cache: CompiledModels | None = None,
        from_cache: bool = False,
    ) -> None:
        import openvino as ov

        self._tensor = ov.Tensor
        advised = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if several else 1
        self.parallel = int(advised)
        self._compiled: Any = compiled
        self._requests = ResourcePool([compiled.create_infer_request() for _ in range(self.parallel)])
        self._batch, self._cache, self._from_cache = batch, cache, from_cache

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's layout and dtype, which are not copied.

        Raises:
            BackendError: N is outside of the engine's batch range, or the runner is closed.
        """
        check_batch(len(images), self._batch)
        slot = self._requests.slot()
        with slot.lock, translate_errors("OpenVINO cannot run this engine"):
            request = slot.resource()
            # the tensor does not keep its array alive, which is a copy where ``images`` are not contiguous
            shared = writable_view(images)
            # not infer([images]), which takes longer to make a tensor than all of this
            request.set_input_tensor(self._tensor(shared, shared_memory=True))
            request.infer(share_outputs=True)
            # a runner of several outputs gives the first where it is called as one of logits
            return np.array(request.get_output_tensor(0).data, np.float32)

    def tensors(self, images: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """All outputs by name; otherwise like a call."""
        check_batch(len(images), self._batch)
        slot = self._requests.slot()
        with slot.lock, translate_errors("OpenVINO cannot run this engine"):
            request, shared = slot.resource(), writable_view(images)
            request.set_input_tensor(self._tensor(shared, shared_memory=True))
            found = request.infer(share_outputs=True)
            return {_name_of(port): np.array(values, np.float32) for port, values in found.items()}

    def cache_compilation(self) -> None:
        """Store the compiled model for the next load, unless it came from there."""
        if self._cache is not None and self._compiled is not None and not self._from_cache:
            self._cache.write(self._compiled)

    def forget_compilation(self) -> bool:
        """Remove the compiled model from the cache if it came from there; returns whether the next load compiles."""
        return self._cache is not None and self._from_cache and self._cache.forget()

    def close(self) -> None:
        """Drop the requests and the compiled model; running calls are finished, calling it twice is harmless."""
        self._compiled = None
        self._requests.close()


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
        return OpenVinoRunner(compile_model(lower(model, forms.machine_form()).SerializeToString()), batch)


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

"""Parts of an engine: tensors computed from given values of others, with the layers that the engine has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.openvino.compile import compile_model, translate_errors
from rescompile.backends.openvino.executable import executable
from rescompile.graph.shared.names import DEQUANTIZE_SUFFIX
from rescompile.manifest import OPENVINO_MODEL, CpuForm


class OpenVinoParts:
    """The engine in ``directory``, cut where the caller says, and compiled with the engine's own settings."""

    def __init__(self, directory: Path, form: CpuForm | None) -> None:
        with translate_errors(f"OpenVINO cannot load {directory / OPENVINO_MODEL}"):
            self._model = executable(directory, form)
        self.names = frozenset(_ports(self._model))

    def run(self, given: Mapping[str, NDArray[Any]], wanted: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See ``base.RunsParts``."""
        import openvino as ov
        from openvino import opset13 as ops

        model = self._model.clone()
        (image,) = model.inputs
        images = next(given[name] for name in image.get_names() if name in given)
        with translate_errors("OpenVINO cannot run a part of this engine"):
            model.reshape([len(images), *images.shape[1:]])
        ports = _ports(model)
        results = [ops.result(_behind_moved_pool(ports, name)) for name in wanted]
        parameters, fed = list(model.get_parameters()), [images]
        for name, values in given.items():
            if name in image.get_names():
                continue
            shape = ports[name].get_partial_shape()
            parameter = ops.parameter(shape, ports[name].get_element_type())
            for reader in ports[name].get_target_inputs():
                reader.replace_source_output(parameter.output(0))
            parameters.append(parameter)
            # constant channels of the deployable graph, which the lowering removes, come last
            fed.append(values[:, : shape[1].get_length()] if shape[1].is_static else values)
        with translate_errors("OpenVINO cannot run a part of this engine"):
            request = compile_model(ov.Model(results, parameters)).create_infer_request()
            request.infer([np.ascontiguousarray(values) for values in fed])
            return {
                name: np.array(request.get_output_tensor(index).data, np.float32)
                for index, name in enumerate(wanted)
            }


def _ports(model: Any) -> dict[str, Any]:
    return {name: port for op in model.get_ops() for port in op.outputs() for name in port.get_names()}


def _behind_moved_pool(ports: Mapping[str, Any], name: str) -> Any:
    """The port of ``name``; for the dequantized output of a max pool, the pool's port if the lowering put the pool
    last."""
    port = ports[name]
    for reader in port.get_target_inputs():
        pool = reader.get_node()
        if pool.get_type_name() == "MaxPool" and any(
            name == made + DEQUANTIZE_SUFFIX for made in pool.output(0).get_names()
        ):
            return pool.output(0)
    return port

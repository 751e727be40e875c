"""ONNX Runtime sessions of graphs in memory, opened without a serialized copy of the weights.

A session keeps the bytes that it was opened from, and making and parsing them takes as long as opening it. So it gets
the nodes alone, and large constants as arrays, which ONNX Runtime copies while it opens the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from calibration.memory import trim_heap

if TYPE_CHECKING:
    import onnx

LARGE = 4096
"""Bytes of a constant from which it is passed as an array."""
MUCH = 1 << 25
"""Bytes of weights from which the copies that were made on the way are given back at once."""
_FUSES_OUTPUTS = ("ConvAddActivationFusion",)
"""ONNX Runtime's rewrite that may take the shortcut's convolution for the fused one, and lose that it is an output."""


def open_session(
    model: onnx.ModelProto | bytes,
    make_options: Callable[[], Any],
    *,
    outputs: Sequence[str] | None = None,
    disabled_optimizers: Sequence[str] = (),
    **more: Any,
) -> Any:
    """An ``InferenceSession`` of ``model``, with ``outputs`` in place of the graph's own if it is not serialized.

    Args:
        model: stays as it is.
        make_options: new options, which a session that fails uses up.
        outputs: tensors to return, which may be inner ones; None takes the graph's outputs.
        disabled_optimizers: rewrites of ONNX Runtime that are not made.
        more: further arguments of the session.
    """
    import onnxruntime

    shell, weights = (
        (model, dict[str, NDArray[Any]]()) if isinstance(model, bytes) else without_weights(model, outputs)
    )
    data = shell if isinstance(shell, bytes) else shell.SerializeToString()

    def opened(*disabled: str) -> Any:
        options = make_options()
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
        # ONNX Runtime's own second try prints, and would make the rewrites that are not to be made
        return onnxruntime.InferenceSession(
            data, options, disabled_optimizers=[*disabled_optimizers, *disabled], enable_fallback=0, **more
        )

    try:
        session = opened()
    except Exception as error:  # onnxruntime's exception classes share no public base
        if "Failed to find node output" not in str(error):
            raise
        session = opened(*_FUSES_OUTPUTS)
    size = sum(array.nbytes for array in weights.values())
    weights.clear()
    if size >= MUCH:
        trim_heap()  # while opening, the weights were there three times
    return session


def without_weights(
    model: onnx.ModelProto, outputs: Sequence[str] | None = None
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A copy of ``model`` in which large constants lie in another file, and these constants by name."""
    import onnx
    from onnx import numpy_helper

    shell, weights = onnx.ModelProto(), dict[str, NDArray[Any]]()
    _copy_fields(model, shell, "graph")
    _copy_fields(model.graph, shell.graph, "initializer")
    for tensor in model.graph.initializer:
        entry = shell.graph.initializer.add()
        if tensor.ByteSize() < LARGE or not tensor.HasField("raw_data"):
            entry.CopyFrom(tensor)
            continue
        weights[tensor.name] = numpy_helper.to_array(tensor)
        _copy_fields(tensor, entry, "raw_data")
        entry.data_location = onnx.TensorProto.EXTERNAL
        entry.external_data.add(key="location", value="weights")
    if outputs is not None:
        del shell.graph.output[:]
        shell.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return shell, weights


def _copy_fields(source: Any, target: Any, left_out: str) -> None:
    """Copy all fields but one; those of ONNX's messages for models, graphs and tensors are numbers, text or lists."""
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if hasattr(value, "extend"):  # a list; protobuf has no other question that all of its versions answer
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)

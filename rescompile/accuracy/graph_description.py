"""What a graph tells before it runs: its input, its classes, and which of its tensors are quantized how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize
from calibration.scales import FULL_LEVELS, LEVELS
from rescompile.errors import GraphError
from rescompile.graph.shared.metadata import factors_of, offsets_of
from rescompile.graph.shared.names import PIXELS
from rescompile.manifest import Manifest

_OURS = "pass a graph that rescompile made"


@dataclass(frozen=True)
class Fed:
    """What a network takes: one image of ``side`` pixels, as pixels themselves or normalized planes."""

    side: int
    raw: bool

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Fed:
        """What an engine takes."""
        return cls(manifest.preprocess.crop, manifest.inputs[0].dtype == "uint8")

    @classmethod
    def of_graph(cls, proto: onnx.ModelProto, path: Path) -> Fed:
        """What a graph takes.

        Raises:
            GraphError: its input is no square image of a fixed size.
        """
        entry = proto.graph.input[0].type.tensor_type
        raw = entry.elem_type == onnx.TensorProto.UINT8
        shape = [dim.dim_value for dim in entry.shape.dim]
        planar = [shape[index] for index in ((3, 1, 2) if raw else (1, 2, 3))] if len(shape) == 4 else []
        if not planar or planar[0] != 3 or planar[1] < 1 or planar[1] != planar[2]:
            raise GraphError(
                f"{path} takes an input of shape {shape}, not square images of one size; {_OURS}"
            )
        return cls(planar[1], raw)

    def image(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[Any]:
        """One image in the network's own layout and dtype."""
        return pixels if self.raw else normalize(pixels[None], preprocess)[0]

    def default(self, stem: str) -> Preprocess:
        """The preprocessing of the network's family at its size; ``stem`` is the tensor at the end of its stem."""
        family: Preprocess = IMAGENET if stem == "maxpool" else CIFAR
        resize = None if family.resize is None else round(family.resize * self.side / family.crop)
        return msgspec.structs.replace(family, resize=resize, crop=self.side)


def read_graph(path: Path) -> onnx.ModelProto:
    """The ONNX graph in ``path``.

    Raises:
        GraphError: the file cannot be read, or is no ONNX graph of one input and one output.
    """
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path)
    except (OSError, DecodeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise GraphError(f"{path} cannot be read as ONNX ({reason}); {_OURS}") from None
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [entry for entry in proto.graph.input if entry.name not in constants]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        raise GraphError(f"{path} is no network with one image input and one output; {_OURS}")
    return proto


def classes_of(proto: onnx.ModelProto, path: Path) -> int:
    """Number of logits.

    Raises:
        GraphError: the graph leaves it open.
    """
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    if len(dims) != 2 or dims[1].dim_value < 1:
        raise GraphError(f"{path} does not say how many classes it has; {_OURS}")
    return int(dims[1].dim_value)


def quantized(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensor to its INT8 form, for each QuantizeLinear of an activation that can saturate, in the order of execution.

    Pixels cannot: black and white are -128 and 127 there.
    """
    exact = {PIXELS, *(tensor.name for tensor in proto.graph.initializer)}
    return {
        node.input[0]: node.output[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in exact
    }


def tops_of(proto: onnx.ModelProto, outputs: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
    """Block to the largest value that the quantizer of its output can hold, in the network's unit."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    factors, full_range = factors_of(proto), offsets_of(proto)
    blocks = {tensor: block for block, tensor in outputs.items()}
    tops = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in blocks and node.input[1] in constants:
            tensor = node.input[0]
            scale = onnx.numpy_helper.to_array(constants[node.input[1]]).astype(np.float32).reshape(-1)
            channels = factors.get(tensor, np.ones(1, np.float32))
            steps = FULL_LEVELS if tensor in full_range else LEVELS
            tops[blocks[tensor]] = (steps * scale * channels).reshape(-1, 1, 1)
    return tops


def saturated_elements(values: NDArray[Any], *, full_range: bool) -> tuple[int, int]:
    """Elements of an INT8 tensor at +-127 or -128, and all of them; -128 is zero in a tensor of full range."""
    at_the_end = (values >= LEVELS) | ((values <= -LEVELS) & (not full_range))
    return int(at_the_end.sum()), int(values.size)

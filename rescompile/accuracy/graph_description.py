"""Properties of a graph that are known without running it: its input, classes, and quantized tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize
from calibration.scales import FULL_LEVELS, LEVELS
from rescompile.errors import GraphError
from rescompile.graph.shared.metadata import factors_of, offsets_of
from rescompile.graph.shared.names import PIXELS
from rescompile.graph.shared.onnx_file import REMEDY
from rescompile.manifest import Manifest
from rescompile.sources.preprocess_options import PreprocessOptions


@dataclass(frozen=True)
class InputSpec:
    """The input of a network: one image, as uint8 pixels or as normalized planes."""

    size: tuple[int, int]
    """Height and width."""
    channels: int
    raw: bool
    """Whether it takes uint8 pixels."""

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> InputSpec:
        """The input of an engine."""
        return cls(
            manifest.preprocess.size, manifest.preprocess.channels, manifest.inputs[0].dtype == "uint8"
        )

    @classmethod
    def of_graph(
        cls, proto: onnx.ModelProto, path: Path, open_as: tuple[int, int] | None = None
    ) -> InputSpec:
        """The input of the graph in ``path``; ``open_as`` is the size to feed where height and width are open.

        Raises:
            GraphError: it is not an image of a fixed size.
        """
        entry = proto.graph.input[0].type.tensor_type
        raw = entry.elem_type == onnx.TensorProto.UINT8
        shape = [dim.dim_value for dim in entry.shape.dim]
        planar = [shape[index] for index in ((3, 1, 2) if raw else (1, 2, 3))] if len(shape) == 4 else []
        if open_as is not None and planar[1:] == [0, 0]:
            planar[1:] = open_as
        if not planar or not 1 <= planar[0] <= 4 or min(planar[1:]) < 1:
            raise GraphError(f"{path} takes an input of shape {shape}, not images of one size; {REMEDY}")
        channels, height, width = planar
        return cls((height, width), channels, raw)

    def image(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[Any]:
        """One image in the network's own layout and dtype."""
        return pixels if self.raw else normalize(pixels[None], preprocess)[0]

    def default(self, stem: str) -> Preprocess:
        """The usual preprocessing of ImageNet or CIFAR at this size; ``stem`` is the tensor at the end of the stem."""
        family: Preprocess = IMAGENET if stem == "maxpool" else CIFAR
        height, width = self.size
        return PreprocessOptions(crop=height if height == width else self.size).apply(
            family, channels=self.channels
        )


def classes_of(proto: onnx.ModelProto, path: Path) -> int:
    """Number of classes, or of channels of another output.

    Raises:
        GraphError: the shape of the output does not say it.
    """
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    if len(dims) not in (2, 4) or dims[1].dim_value < 1:
        raise GraphError(f"{path} does not say how many classes it has; {REMEDY}")
    return int(dims[1].dim_value)


def quantized(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensor to its INT8 form, for each QuantizeLinear of an activation, in the order of execution.

    Exact pixels are left out: they cannot saturate, because black and white are -128 and 127 there.
    """
    exact = {PIXELS, *(tensor.name for tensor in proto.graph.initializer)}
    return {
        node.input[0]: node.output[0]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in exact
    }


def tops_of(proto: onnx.ModelProto, outputs: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
    """Block to the largest value [C, 1, 1] or [1, 1, 1] that its output's quantizer holds, in the network's unit."""
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
    """Number of elements of an INT8 tensor at +-127 or -128, and of all; in a full-range tensor -128 is zero."""
    at_the_end = (values >= LEVELS) | ((values <= -LEVELS) & (not full_range))
    return int(at_the_end.sum()), int(values.size)

"""Writes the ONNX graph of a network that another framework's file describes layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rescompile.errors import CheckpointError
from rescompile.wording import brief

INPUT = "input"
_OPSET = 17
_IR_VERSION = 9
Shape = tuple[int, ...]
"""Shape of one image's tensor, without the batch: (C, H, W) or (features,)."""


class GraphWriter:
    """A graph under construction: nodes in their order, weights, and the shape of each tensor."""

    def __init__(self, shape: Shape) -> None:
        self.shapes: dict[str, Shape] = {INPUT: shape}
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add weights (stored in float32) or integers, and return their name."""
        kind = np.float32 if values.dtype.kind == "f" else np.int64
        self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(values, kind), name)
        return name

    def node(self, operator: str, inputs: Sequence[str], name: str, shape: Shape, **attributes: Any) -> str:
        """Add a node whose only output has its name, and return that."""
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def model(self, outputs: Sequence[str], path: Path) -> onnx.ModelProto:
        """The finished model of the file ``path``, with a free batch; it computes in float32.

        Raises:
            CheckpointError: what the file describes is not a network, such as two layers of one name.
        """

        def value(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *self.shapes[name]])

        graph = helper.make_graph(
            self._nodes, "network", [value(INPUT)], [value(name) for name in outputs], list(self._weights.values())
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            raise CheckpointError(
                f"{path} does not describe a network ({brief(error)}): copy it again"
            ) from None
        return model

    # operations that need arithmetic on shapes

    def conv(
        self,
        x: str,
        name: str,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilations: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> str:
        """A convolution with weights [out, in / groups, height, width]; pads are top, left, bottom, right."""
        channels, height, width = self.shapes[x]
        out, inside, *kernel = weight.shape
        if inside * groups != channels or out % groups:
            raise ValueError(
                f"weights {list(weight.shape)} in {groups} groups do not fit {channels} channels"
            )
        size = windows((height, width), kernel, strides, pads, dilations)
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias.reshape(out)))
        return self.node(
            "Conv", inputs, name, (out, *size),
            kernel_shape=kernel, strides=list(strides), pads=list(pads), dilations=list(dilations), group=groups,
        )  # fmt: skip

    def pool(
        self, x: str, name: str, kind: str, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]
    ) -> str:
        """``MaxPool`` or ``AveragePool``; padding does not count in averages."""
        channels, height, width = self.shapes[x]
        size = windows((height, width), kernel, strides, pads, (1, 1))
        return self.node(
            kind, [x], name, (channels, *size), kernel_shape=list(kernel), strides=list(strides), pads=list(pads)
        )  # fmt: skip

    def global_pool(self, x: str, name: str, kind: str) -> str:
        """``GlobalAveragePool`` or ``GlobalMaxPool``."""
        return self.node(kind, [x], name, (self.shapes[x][0], 1, 1))

    def norm(
        self,
        x: str,
        name: str,
        scale: NDArray[Any],
        shift: NDArray[Any],
        mean: NDArray[Any],
        variance: NDArray[Any],
        epsilon: float,
    ) -> str:
        """A batch normalization with stored statistics."""
        parts = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
        channels = self.shapes[x][0]
        for part, values in parts.items():
            if values.shape != (channels,):
                raise ValueError(f"its {part} has shape {list(values.shape)}, its input {channels} channels")
        if (variance + epsilon <= 0).any():
            raise ValueError(f"its variance is negative ({variance.min():g})")
        weights = [self.constant(f"{name}.{part}", values) for part, values in parts.items()]
        return self.node("BatchNormalization", [x, *weights], name, self.shapes[x], epsilon=epsilon)

    def affine(self, x: str, name: str, scale: NDArray[Any], shift: NDArray[Any]) -> str:
        """``x * scale + shift`` for each channel."""
        zero, one = np.zeros_like(scale), np.ones_like(scale)
        return self.norm(x, name, scale, shift, zero, one, 0.0)

    def pad(self, x: str, name: str, pads: Sequence[int], value: float = 0.0) -> str:
        """Zeros (or ``value``) at top, left, bottom and right."""
        channels, height, width = self.shapes[x]
        top, left, bottom, right = pads
        amounts = self.constant(f"{name}.pads", np.array([0, 0, top, left, 0, 0, bottom, right]))
        filling = self.constant(f"{name}.value", np.array(value, np.float32))
        size = (height + top + bottom, width + left + right)
        return self.node("Pad", [x, amounts, filling], name, (channels, *size))

    def flatten(self, x: str, name: str) -> str:
        """[N, C, H, W] to [N, C * H * W]."""
        return self.node("Flatten", [x], name, (int(np.prod(self.shapes[x])),))

    def linear(self, x: str, name: str, weight: NDArray[Any], bias: NDArray[Any] | None) -> str:
        """A fully connected layer with weights [out, in] on a flat tensor."""
        out, inside = weight.shape
        if self.shapes[x] != (inside,):
            raise ValueError(f"weights {list(weight.shape)} do not fit an input of {list(self.shapes[x])}")
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias.reshape(out)))
        return self.node("Gemm", inputs, name, (out,), transB=1)

    def join(self, operator: str, inputs: Sequence[str], name: str) -> str:
        """``Add``, ``Mul``, ``Max``, ``Mean`` … of tensors of one shape, or ones that spread over the largest."""
        if len(inputs) < 2:
            raise ValueError(f"it joins {len(inputs)} inputs")
        shape = np.broadcast_shapes(*(self.shapes[x] for x in inputs))
        if operator in {"Add", "Mul", "Sub"} and len(inputs) > 2:
            *first, last = inputs
            inputs = [self.join(operator, first, f"{name}.{len(first)}"), last]
        return self.node(operator, inputs, name, shape)

    def concat(self, inputs: Sequence[str], name: str) -> str:
        """Channels of all ``inputs``, one after the other."""
        shapes = [self.shapes[x] for x in inputs]
        if len({shape[1:] for shape in shapes}) != 1:
            raise ValueError(f"shapes {shapes} differ in more than their channels")
        return self.node("Concat", inputs, name, (sum(shape[0] for shape in shapes), *shapes[0][1:]), axis=1)


def windows(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, int]:
    """Height and width that a convolution or pooling gives; pads are top, left, bottom, right.

    Raises:
        ValueError: the window does not fit.
    """
    found = []
    for axis in (0, 1):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        room = size[axis] + pads[axis] + pads[axis + 2] - reach
        if room < 0 or strides[axis] < 1 or reach < 1:
            raise ValueError(f"a window of {list(kernel)} does not fit into {list(size)} pixels")
        found.append(room // strides[axis] + 1)
    return found[0], found[1]

"""Keras layers as ONNX nodes: one function for each class, NHWC configuration to NCHW nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.sources.graph_writer import GraphWriter

_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "elu": ("Elu", {}),
    "selu": ("Selu", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "exponential": ("Exp", {}),
    "softmax": ("Softmax", {"axis": 1}),
}


@dataclass
class Layer:
    """One layer to be written: its configuration, its weights and the tensors that it reads."""

    writer: GraphWriter
    config: dict[str, Any]
    weights: list[NDArray[Any]]
    inputs: list[str]
    name: str

    def __post_init__(self) -> None:
        if self.config.get("data_format") == "channels_first":
            raise ValueError("its data_format is channels_first, and channels_last is needed")

    @property
    def x(self) -> str:
        """The only input."""
        (only,) = self.inputs
        return only

    @property
    def channels(self) -> int:
        """Channels of the only input."""
        return self.writer.shapes[self.x][0]

    def pair(self, key: str, default: Any = None) -> tuple[int, int]:
        """Height and width of a configured size."""
        value = self.config.get(key, default)
        tall, wide = (value, value) if isinstance(value, int) else value
        return int(tall), int(wide)

    def pads(
        self, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
    ) -> list[int]:
        """Top, left, bottom and right; "same" puts the odd pixel at the bottom and right."""
        if self.config["padding"] == "valid":
            return [0, 0, 0, 0]
        if self.config["padding"] != "same":
            raise ValueError(f"its padding is {self.config['padding']}")
        _, *size = self.writer.shapes[self.x]
        totals = [
            max((-(-side // step) - 1) * step + (length - 1) * spread + 1 - side, 0)
            for side, length, step, spread in zip(size, kernel, strides, dilations, strict=True)
        ]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]

    def counted(self, *counts: int) -> list[NDArray[Any]]:
        """The weights, where their number is one of ``counts``."""
        if len(self.weights) not in counts:
            raise ValueError(f"it has {len(self.weights)} arrays of weights")
        return self.weights

    def activated(self, y: str) -> str:
        """``y`` behind the layer's own activation."""
        return activation(self.writer, y, self.config.get("activation", "linear"), f"{self.name}.activation")

    def scale_and_shift(self, kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Factor and summand for each channel of a Rescaling or Normalization layer."""
        if kind == "Rescaling":
            scale, shift = (np.asarray(self.config[key], np.float64) for key in ("scale", "offset"))
        else:
            axis = self.config.get("axis", -1)
            if axis not in (-1, 3, [-1], [3]) or self.config.get("invert"):
                raise ValueError("it does not normalize each channel")
            arrays = self.weights[:2] or [self.config["mean"], self.config["variance"]]
            mean, variance = (np.asarray(values, np.float64).ravel() for values in arrays)
            scale = 1 / np.maximum(np.sqrt(variance), 1e-7)  # Keras's own smallest divisor
            shift = -mean * scale
        return (
            np.broadcast_to(scale.ravel(), self.channels).astype(np.float64),
            np.broadcast_to(shift.ravel(), self.channels).astype(np.float64),
        )


def activation(writer: GraphWriter, x: str, kind: Any, name: str) -> str:
    """``x`` behind an activation by Keras's name or configuration."""
    if isinstance(kind, dict):
        kind = kind.get("config", kind.get("class_name")) if kind.get("class_name") == "function" else kind
    if kind in (None, "linear"):
        return x
    shape = writer.shapes[x]
    if kind in ("swish", "silu"):
        gate = writer.node("Sigmoid", [x], f"{name}.sigmoid", shape)
        return writer.join("Mul", [x, gate], name)
    if kind == "relu6":
        return _relu(writer, x, name, 6.0)
    if not isinstance(kind, str) or kind not in _ACTIVATIONS:
        raise ValueError(f"its activation is {kind}")
    operator, attributes = _ACTIVATIONS[kind]
    return writer.node(operator, [x], name, shape, **attributes)


def _relu(writer: GraphWriter, x: str, name: str, highest: float | None) -> str:
    if highest is None:
        return writer.node("Relu", [x], name, writer.shapes[x])
    bounds = [
        writer.constant(f"{name}.{part}", np.array(value, np.float32))
        for part, value in (("low", 0), ("high", highest))
    ]
    return writer.node("Clip", [x, *bounds], name, writer.shapes[x])


def _conv(layer: Layer) -> str:
    kernel, *bias = layer.counted(1, 2)
    strides, dilations = layer.pair("strides", 1), layer.pair("dilation_rate", 1)
    y = layer.writer.conv(
        layer.x, layer.name, kernel.transpose(3, 2, 0, 1), bias[0] if bias else None,
        strides=strides, dilations=dilations, groups=int(layer.config.get("groups", 1)),
        pads=layer.pads(layer.pair("kernel_size"), strides, dilations),
    )  # fmt: skip
    return layer.activated(y)


def _depthwise_of(layer: Layer, kernel: NDArray[Any], bias: NDArray[Any] | None, name: str) -> str:
    strides, dilations = layer.pair("strides", 1), layer.pair("dilation_rate", 1)
    tall, wide, channels, multiplier = kernel.shape
    return layer.writer.conv(
        layer.x, name, kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, tall, wide), bias,
        strides=strides, dilations=dilations, groups=channels,
        pads=layer.pads(layer.pair("kernel_size"), strides, dilations),
    )  # fmt: skip


def _depthwise(layer: Layer) -> str:
    kernel, *bias = layer.counted(1, 2)
    return layer.activated(_depthwise_of(layer, kernel, bias[0] if bias else None, layer.name))


def _separable(layer: Layer) -> str:
    depthwise, pointwise, *bias = layer.counted(2, 3)
    inner = _depthwise_of(layer, depthwise, None, f"{layer.name}.depthwise")
    y = layer.writer.conv(inner, layer.name, pointwise.transpose(3, 2, 0, 1), bias[0] if bias else None)
    return layer.activated(y)


def _batch_norm(layer: Layer) -> str:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    if axis not in (-1, len(layer.writer.shapes[layer.x])):
        raise ValueError(f"it normalizes axis {axis}")
    scaled, centred = layer.config.get("scale", True), layer.config.get("center", True)
    *affine, mean, variance = layer.counted(2 + scaled + centred)
    scale = affine.pop(0) if scaled else np.ones_like(mean)
    shift = affine.pop(0) if centred else np.zeros_like(mean)
    return layer.writer.norm(
        layer.x, layer.name, scale, shift, mean, variance, float(layer.config.get("epsilon", 1e-3))
    )


def _relu_layer(layer: Layer) -> str:
    slope = layer.config.get("negative_slope") or 0.0
    slope = slope[0] if isinstance(slope, list) else slope
    if layer.config.get("threshold"):
        raise ValueError("its threshold is not zero")
    highest = layer.config.get("max_value")
    if slope:
        if highest is not None:
            raise ValueError("it has a slope and a largest value")
        return _leaky(layer, float(slope))
    return _relu(layer.writer, layer.x, layer.name, None if highest is None else float(highest))


def _leaky(layer: Layer, slope: float) -> str:
    return layer.writer.node("LeakyRelu", [layer.x], layer.name, layer.writer.shapes[layer.x], alpha=slope)


def _leaky_relu(layer: Layer) -> str:
    return _leaky(layer, float(layer.config.get("negative_slope", layer.config.get("alpha", 0.3))))


def _pool(kind: str) -> Callable[[Layer], str]:
    def convert(layer: Layer) -> str:
        size = layer.pair("pool_size")
        strides = layer.pair("strides") if layer.config.get("strides") else size
        return layer.writer.pool(layer.x, layer.name, kind, size, strides, layer.pads(size, strides, (1, 1)))

    return convert


def _global_pool(kind: str) -> Callable[[Layer], str]:
    def convert(layer: Layer) -> str:
        if layer.config.get("keepdims"):
            return layer.writer.global_pool(layer.x, layer.name, kind)
        pooled = layer.writer.global_pool(layer.x, f"{layer.name}.pool", kind)
        return layer.writer.flatten(pooled, layer.name)

    return convert


def _flatten(layer: Layer) -> str:
    shape = layer.writer.shapes[layer.x]
    x = layer.x
    if len(shape) == 1:
        return x
    channels, height, width = shape
    if (height, width) != (1, 1):
        x = layer.writer.node(
            "Transpose", [x], f"{layer.name}.transpose", (height, width, channels), perm=[0, 2, 3, 1]
        )
    return layer.writer.flatten(x, layer.name)


def _reshape(layer: Layer) -> str:
    """The two reshapes of gates, whose order of elements is the same in both layouts."""
    shape, target = layer.writer.shapes[layer.x], list(layer.config["target_shape"])
    total = int(np.prod(shape))
    if shape[1:] in ((), (1, 1)) and target in ([1, 1, total], [1, 1, -1]):
        new: tuple[int, ...] = (total, 1, 1)
    elif shape[1:] in ((), (1, 1)) and target in ([total], [-1]):
        new = (total,)
    else:
        raise ValueError(f"it makes {target} of an image")
    order = layer.writer.constant(f"{layer.name}.shape", np.array([0, *new]))
    return layer.writer.node("Reshape", [layer.x, order], layer.name, new)


def _dense(layer: Layer) -> str:
    kernel, *bias = layer.counted(1, 2)
    own = bias[0] if bias else None
    if len(layer.writer.shapes[layer.x]) == 1:
        y = layer.writer.linear(layer.x, layer.name, kernel.T, own)
    else:  # on an image, a Dense layer is a 1x1 convolution
        y = layer.writer.conv(layer.x, layer.name, kernel.T[:, :, None, None], own)
    return layer.activated(y)


def _padding(layer: Layer) -> str:
    value = layer.config["padding"]
    if isinstance(value, int):
        value = [value, value]
    (top, bottom), (left, right) = ([side, side] if isinstance(side, int) else side for side in value)
    return layer.writer.pad(layer.x, layer.name, [int(side) for side in (top, left, bottom, right)])


def _join(operator: str) -> Callable[[Layer], str]:
    return lambda layer: layer.writer.join(operator, layer.inputs, layer.name)


def _concatenate(layer: Layer) -> str:
    axis = layer.config.get("axis", -1)
    if axis not in (-1, len(layer.writer.shapes[layer.inputs[0]])):
        raise ValueError(f"it joins axis {axis}")
    return layer.writer.concat(layer.inputs, layer.name)


def _affine(kind: str) -> Callable[[Layer], str]:
    return lambda layer: layer.writer.affine(layer.x, layer.name, *layer.scale_and_shift(kind))


def _softmax(layer: Layer) -> str:
    if layer.config.get("axis", -1) not in (-1, len(layer.writer.shapes[layer.x])):
        raise ValueError(f"its axis is {layer.config['axis']}")
    return activation(layer.writer, layer.x, "softmax", layer.name)


def _nothing(layer: Layer) -> str:
    return layer.x


LAYERS: dict[str, Callable[[Layer], str]] = {
    "Conv2D": _conv,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    "BatchNormalization": _batch_norm,
    "BatchNormalizationV1": _batch_norm,
    "SyncBatchNormalization": _batch_norm,
    "Dense": _dense,
    "Activation": lambda layer: activation(layer.writer, layer.x, layer.config["activation"], layer.name),
    "ReLU": _relu_layer,
    "LeakyReLU": _leaky_relu,
    "Softmax": _softmax,
    "Add": _join("Add"),
    "Subtract": _join("Sub"),
    "Multiply": _join("Mul"),
    "Maximum": _join("Max"),
    "Average": _join("Mean"),
    "Concatenate": _concatenate,
    "MaxPooling2D": _pool("MaxPool"),
    "AveragePooling2D": _pool("AveragePool"),
    "GlobalAveragePooling2D": _global_pool("GlobalAveragePool"),
    "GlobalMaxPooling2D": _global_pool("GlobalMaxPool"),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "ZeroPadding2D": _padding,
    "Rescaling": _affine("Rescaling"),
    "Normalization": _affine("Normalization"),
}
"""Layers that become nodes, by class."""

_TRAINING_ONLY = (
    "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization",
    "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness",
)  # fmt: skip
LAYERS |= dict.fromkeys(_TRAINING_ONLY, _nothing)

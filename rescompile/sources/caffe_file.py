"""Caffe's .caffemodel files, which hold layers and weights in one protobuf, read without Caffe.

Two rules of Caffe's differ from other frameworks: poolings round their size up, and a batch norm stores sums that are
divided by a third array.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.file_names import text_of
from rescompile.errors import CheckpointError, reason_of
from rescompile.files import sha256_of
from rescompile.graph.shared.protobuf_size import has_too_many_messages
from rescompile.manifest import CheckpointRef
from rescompile.sources.caffe_schema import net_parameter
from rescompile.sources.graph_writer import INPUT, GraphWriter
from rescompile.sources.network import SourceNetwork
from rescompile.wording import brief

_DATA = {"Data", "ImageData", "Input", "HDF5Data", "MemoryData", "DummyData", "WindowData", "Python"}
_IGNORED = {"Accuracy", "Silence"}
_SAME = {"Split", "Dropout"}
_AVERAGE = 1
"""Caffe's number of an average pooling; 0 takes the largest, and 2 one at random."""
_LARGEST_SIDE = 8192


def read_caffe(path: Path, size: tuple[int, int] | None = None) -> SourceNetwork:
    """The network in a .caffemodel; ``size`` is the input's height and width where the file leaves them open.

    Raises:
        CheckpointError: the file cannot be read, or has a layer that rescompile does not know.
    """
    network = _parsed(path)
    converter = _Converter(path, network, size)
    outputs = converter.convert()
    return SourceNetwork(
        graph=converter.writer.model(outputs, path),
        name=brief(network.name) or "caffe",
        checkpoint=CheckpointRef(sha256_of(path), text_of(path.name)),
        notes=tuple(converter.notes),
    )


def _parsed(path: Path) -> Any:
    from google.protobuf.message import DecodeError

    network = net_parameter()()
    try:
        data = path.read_bytes()
        if has_too_many_messages(data, network.DESCRIPTOR):
            raise CheckpointError(f"{path} has more parts than any network: copy it again")
        network.ParseFromString(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)}): check the path") from None
    except DecodeError:
        raise CheckpointError(f"{path} is damaged, or not a .caffemodel: copy it again") from None
    if network.layers and not network.layer:
        raise CheckpointError(
            f"{path} has the layers of Caffe's first format: convert it with Caffe's upgrade_net_proto_binary"
        )
    if not any(layer.blobs for layer in network.layer):
        raise CheckpointError(f"{path} holds no weights: pass the .caffemodel that the training wrote")
    return network


def _blob(blob: Any) -> NDArray[np.float32]:
    values = np.array(blob.data or blob.double_data, np.float32)
    shape = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
    if not np.isfinite(values).all():
        raise ValueError("its weights have values that are NaN or infinite")
    return values.reshape(shape)


def _sides(parameter: Any, name: str, default: int, short: str | None = None) -> tuple[int, int]:
    """Height and width of a size that Caffe writes once, twice, or as ``_h`` and ``_w``."""
    short = short or name
    if hasattr(parameter, f"{short}_h") and (
        parameter.HasField(f"{short}_h") or parameter.HasField(f"{short}_w")
    ):
        return getattr(parameter, f"{short}_h"), getattr(parameter, f"{short}_w")
    values = list(getattr(parameter, name)) or [default]
    return values[0], values[-1]


class _Converter:
    """Writes the layers of a network into a graph."""

    def __init__(self, path: Path, network: Any, size: tuple[int, int] | None) -> None:
        self.path = path
        self.network = network
        self.writer = GraphWriter(self._input_shape(size))
        self.notes: list[str] = []
        self._tensors: dict[str, str] = {}
        """A blob's name to the tensor that it holds now: layers work in place."""
        self._read: set[str] = set()
        self._norm: tuple[str, list[NDArray[Any]], float] | None = None
        """A batch norm whose Scale may follow: its input, its statistics and its epsilon."""

    def convert(self) -> list[str]:
        """Write all layers; the outputs are the tensors that none of them reads."""
        made: list[str] = []
        for name in self.network.input:
            self._tensors[name] = INPUT
        for number, layer in enumerate(self.network.layer):
            try:
                if layer.type in _DATA:
                    self._data(layer)
                elif layer.type not in _IGNORED:
                    made.append(self._layer(layer, self._next_scales(number)))
            except CheckpointError:
                raise
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                raise CheckpointError(
                    f"{self.path}: the layer '{brief(layer.name)}' ({brief(layer.type)}) cannot be read "
                    f"({brief(error)}): {_OTHER_WAY}"
                ) from None
        return [tensor for tensor in dict.fromkeys(made) if tensor not in self._read]

    def _next_scales(self, number: int) -> bool:
        """Whether the layer behind ``number`` is the Scale of a batch norm."""
        layers = self.network.layer
        if number + 1 == len(layers) or layers[number + 1].type != "Scale":
            return False
        return list(layers[number + 1].bottom) == list(layers[number].top)

    def _data(self, layer: Any) -> None:
        self._tensors[layer.top[0]] = INPUT
        transform = layer.transform_param
        parts = []
        if transform.mean_file:
            parts.append(
                f"subtracts the mean image '{brief(Path(transform.mean_file).name)}' (pass it as --mean)"
            )
        if transform.mean_value:
            values = ",".join(f"{value:g}" for value in transform.mean_value)
            parts.append(f"subtracts {values} from pixels of 0 to 255")
        if transform.scale != 1:
            parts.append(f"multiplies pixels by {transform.scale:g}")
        if parts:
            self.notes.append(f"the data layer of the file {' and '.join(parts)}")

    def _layer(self, layer: Any, scale_follows: bool) -> str:
        inputs = [self._tensors[name] for name in layer.bottom if name in self._tensors]
        name = layer.name
        if layer.type in _SAME:
            y = inputs[0]
        elif layer.type == "SoftmaxWithLoss":
            return inputs[0]
        elif layer.type == "BatchNorm" and scale_follows:
            # both become one node, which folds into the convolution in front of it
            self._norm = (inputs[0], *_statistics(layer))
            y = inputs[0]
        else:
            convert = self._scale if layer.type == "Scale" else _LAYERS.get(layer.type)
            if convert is None:
                raise CheckpointError(
                    f"{self.path} has a layer that rescompile does not know, '{brief(name)}' "
                    f"({brief(layer.type)}): {_OTHER_WAY}"
                )
            self._read.update(inputs)
            y = convert(self.writer, layer, inputs)
        for top in layer.top:
            self._tensors[top] = y
        return y

    def _scale(self, writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
        (x,) = inputs
        scale, *shift = (_blob(blob).ravel() for blob in layer.blobs)
        offset = shift[0] if shift else np.zeros_like(scale)
        if layer.scale_param.axis not in (1, -3):
            raise ValueError(f"its axis is {layer.scale_param.axis}")
        if self._norm is None:
            return writer.affine(x, layer.name, scale, offset)
        (x, (mean, variance), epsilon), self._norm = self._norm, None
        return writer.norm(x, layer.name, scale, offset, mean, variance, epsilon)

    def _input_shape(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """(C, H, W): the file's own, or the channels of the first convolution and the user's size."""
        for shape in self._stated_shapes():
            if len(shape) == 4 and all(0 < side <= _LARGEST_SIDE for side in shape[1:]):
                return shape[1], shape[2], shape[3]
        if size is None:
            crops = [layer.transform_param.crop_size for layer in self.network.layer if layer.type in _DATA]
            said = next((f" (training cropped them to {side} pixels)" for side in crops if side), "")
            raise CheckpointError(
                f"{self.path} does not say the size of its images{said}: pass --crop, such as --crop 224"
            )
        first = next((layer for layer in self.network.layer if layer.type == "Convolution"), None)
        if first is None or not first.blobs:
            raise CheckpointError(f"{self.path} has no convolution: pass the file of an image classifier")
        shape = list(first.blobs[0].shape.dim) or [0, first.blobs[0].channels]
        channels = int(shape[1]) * first.convolution_param.group
        if not all(0 < side <= _LARGEST_SIDE for side in (channels, *size)):
            raise CheckpointError(
                f"{self.path} takes images of {channels} channels and {size} pixels: check --crop"
            )
        return channels, *size

    def _stated_shapes(self) -> list[list[int]]:
        stated = [list(shape.dim) for shape in self.network.input_shape]
        if self.network.input_dim:
            stated.append(list(self.network.input_dim)[:4])
        inputs = [layer for layer in self.network.layer if layer.type == "Input"]
        return stated + [list(shape.dim) for layer in inputs for shape in layer.input_param.shape]


_OTHER_WAY = "export the network to ONNX in the program that made it, and pass that"


def _statistics(layer: Any) -> tuple[list[NDArray[Any]], float]:
    """Mean and variance of a batch norm, and its epsilon."""
    mean, variance, factor = (_blob(blob).ravel() for blob in layer.blobs)
    divisor = float(factor[0])
    return [values / divisor if divisor else np.zeros_like(values) for values in (mean, variance)], float(
        layer.batch_norm_param.eps
    )


def _batch_norm(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    (mean, variance), epsilon = _statistics(layer)
    ones = np.ones_like(mean)
    return writer.norm(inputs[0], layer.name, ones, np.zeros_like(mean), mean, variance, epsilon)


def _conv(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    parameter = layer.convolution_param
    weight, *bias = (_blob(blob) for blob in layer.blobs)
    pads = _sides(parameter, "pad", 0)
    kernel = _sides(parameter, "kernel_size", 1, "kernel")
    if tuple(weight.shape[2:]) != kernel:
        raise ValueError(f"its weights are {list(weight.shape)} and its kernel {list(kernel)}")
    dilations = list(parameter.dilation) or [1]
    return writer.conv(
        inputs[0], layer.name, weight, bias[0] if bias else None,
        strides=_sides(parameter, "stride", 1), pads=(*pads, *pads),
        dilations=(dilations[0], dilations[-1]), groups=parameter.group,
    )  # fmt: skip


def _pool(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    parameter, x = layer.pooling_param, inputs[0]
    if parameter.pool > _AVERAGE:
        raise ValueError("it pools at random")
    kind = "AveragePool" if parameter.pool == _AVERAGE else "MaxPool"
    if parameter.global_pooling:
        return writer.global_pool(x, layer.name, f"Global{kind}")
    kernel, strides = _sides(parameter, "kernel_size", 0, "kernel"), _sides(parameter, "stride", 1)
    pads = _sides(parameter, "pad", 0)
    over = [
        _overhang(side, *each, up=not parameter.round_mode)
        for side, *each in zip(writer.shapes[x][1:], kernel, strides, pads, strict=True)
    ]
    if kind == "AveragePool" and any(pads):
        # Caffe's averages count the padding, but not what hangs over it
        x = writer.pad(x, f"{layer.name}.pad", (*pads, *pads))
        return writer.pool(x, layer.name, kind, kernel, strides, (0, 0, *over))
    ends = [pad + more for pad, more in zip(pads, over, strict=True)]
    return writer.pool(x, layer.name, kind, kernel, strides, (*pads, *ends))


def _overhang(side: int, kernel: int, stride: int, pad: int, *, up: bool) -> int:
    """Pixels by which the last window hangs over the padded image, where Caffe rounds ``up``."""
    room = side + 2 * pad - kernel
    steps = -(-room // stride) if up else room // stride
    if pad and steps * stride >= side + pad:
        steps -= 1  # the last window would begin in the padding
    return max(steps * stride - room, 0)


def _eltwise(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    parameter = layer.eltwise_param
    if any(value != 1 for value in parameter.coeff):
        raise ValueError(f"its coefficients are {list(parameter.coeff)}")
    return writer.join(("Mul", "Add", "Max")[parameter.operation], inputs, layer.name)


def _linear(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    weight, *bias = (_blob(blob) for blob in layer.blobs)
    weight = weight.reshape(weight.shape[-2:])
    if layer.inner_product_param.axis != 1:
        raise ValueError(f"its axis is {layer.inner_product_param.axis}")
    flat = inputs[0]
    if len(writer.shapes[flat]) > 1:
        flat = writer.flatten(flat, f"{layer.name}.flatten")
    transposed = layer.inner_product_param.transpose
    return writer.linear(flat, layer.name, weight.T if transposed else weight, bias[0] if bias else None)


def _relu(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    slope = layer.relu_param.negative_slope
    shape = writer.shapes[inputs[0]]
    if slope:
        return writer.node("LeakyRelu", inputs, layer.name, shape, alpha=slope)
    return writer.node("Relu", inputs, layer.name, shape)


def _power(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    parameter = layer.power_param
    if parameter.power != 1:
        raise ValueError(f"its power is {parameter.power:g}")
    channels = writer.shapes[inputs[0]][0]
    scale, shift = (np.full(channels, value, np.float32) for value in (parameter.scale, parameter.shift))
    return writer.affine(inputs[0], layer.name, scale, shift)


def _concat(writer: GraphWriter, layer: Any, inputs: list[str]) -> str:
    if (layer.concat_param.axis, layer.concat_param.concat_dim) != (1, 1):
        raise ValueError("it joins another axis than the channels")
    return writer.concat(inputs, layer.name)


def _pointwise(operator: str, **attributes: Any) -> Callable[[GraphWriter, Any, list[str]], str]:
    return lambda writer, layer, inputs: writer.node(
        operator, inputs, layer.name, writer.shapes[inputs[0]], **attributes
    )


_LAYERS: dict[str, Callable[[GraphWriter, Any, list[str]], str]] = {
    "Convolution": _conv,
    "BatchNorm": _batch_norm,
    "ReLU": _relu,
    "Pooling": _pool,
    "Eltwise": _eltwise,
    "InnerProduct": _linear,
    "Softmax": _pointwise("Softmax", axis=1),
    "Sigmoid": _pointwise("Sigmoid"),
    "TanH": _pointwise("Tanh"),
    "Concat": _concat,
    "Power": _power,
    "Flatten": lambda writer, layer, inputs: writer.flatten(inputs[0], layer.name),
}

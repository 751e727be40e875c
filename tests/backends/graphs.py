"""A residual network small enough to read, as fp32, fp16-typed and INT8 Q/DQ ONNX, by the rules of the project.

    images -> conv1 -> relu -> layer1.0 (identity skip) -> layer2.0 (downsample skip) -> GAP -> fc -> logits

The INT8 form quantizes the inputs of every convolution and of fc, and of each Add only the skip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rescompile.manifest import Precision

CLASSES = 10
SIDE = 16
IMAGE_SHAPE = (3, SIDE, SIDE)
RESIDUAL_ADDS = 2

Rest = type[np.float32] | type[np.float16]


@dataclass
class _Builder:
    """Collects nodes; ``amax`` is empty while the fp32 graph is made and holds ranges for the INT8 one."""

    rest: Rest
    amax: dict[str, float]
    channels: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def quantized(self, tensor: str) -> str:
        """``tensor`` through Q/DQ (one pair however many readers), or itself in a float graph."""
        if not self.amax:
            return tensor
        output = f"{tensor}_dequantized"
        if not any(node.name == output for node in self.nodes):
            scale = self.constant(f"{tensor}_scale", self.rest(self.amax[tensor] / 127))
            zero = self.constant(f"{tensor}_zero", np.int8(0))
            self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}_quantized")
            self.node("DequantizeLinear", [f"{tensor}_quantized", scale, zero], output)
        return output

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        if not self.amax:
            return self.constant(name, value.astype(self.rest))
        scale = np.maximum(np.abs(value.reshape(len(value), -1)).max(axis=1) / 127, 1e-8).astype(self.rest)
        steps = value / scale.astype(np.float32).reshape(-1, *[1] * (value.ndim - 1))
        stored = self.constant(name, np.clip(np.rint(steps), -128, 127).astype(np.int8))
        scales, zeros = self.constant(f"{name}_scale", scale), np.zeros(len(value), np.int8)
        inputs = [stored, scales, self.constant(f"{name}_zero", zeros)]
        return self.node("DequantizeLinear", inputs, f"{name}_dequantized", axis=0)

    def conv(self, source: str, name: str, cin: int, cout: int, *, kernel: int = 3, stride: int = 1) -> str:
        value = self.random.standard_normal((cout, cin, kernel, kernel)) * (2 / (cin * kernel**2)) ** 0.5
        bias = (self.random.standard_normal(cout) * 0.1).astype(self.rest)
        inputs = [self.quantized(source), self.weight(f"{name}.weight", value.astype(np.float32))]
        inputs.append(self.constant(f"{name}.bias", bias))
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", inputs, name, **shape)

    def block(self, source: str, name: str, cin: int, cout: int) -> str:
        stride = 1 if cin == cout else 2
        inner = self.node(
            "Relu", [self.conv(source, f"{name}.conv1", cin, cout, stride=stride)], f"{name}.relu1"
        )
        branch = self.conv(inner, f"{name}.conv2", cout, cout)
        skip = source
        if cin != cout:
            skip = self.conv(source, f"{name}.downsample", cin, cout, kernel=1, stride=stride)
        added = self.node("Add", [branch, self.quantized(skip)], f"{name}.add")
        return self.node("Relu", [added], f"{name}.relu")

    def network(self) -> None:
        source, half, width = "images", self.rest is np.float16, self.channels
        if half:
            source = self.node("Cast", ["images"], "images_half", to=TensorProto.FLOAT16)
        stem = self.node("Relu", [self.conv(source, "conv1", 3, width)], "relu")
        body = self.block(self.block(stem, "layer1.0", width, width), "layer2.0", width, 2 * width)
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [body], "avgpool")], "flatten", axis=1)
        value = (self.random.standard_normal((CLASSES, 2 * width)) * 0.5).astype(np.float32)
        bias = self.constant("fc.bias", self.random.standard_normal(CLASSES).astype(self.rest))
        inputs = [self.quantized(pooled), self.weight("fc.weight", value), bias]
        logits = self.node("Gemm", inputs, "fc" if half else "logits", transB=1)
        if half:
            self.node("Cast", [logits], "logits", to=TensorProto.FLOAT)

    def model(self) -> onnx.ModelProto:
        self.network()
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *IMAGE_SHAPE])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
        graph = helper.make_graph(
            self.nodes, "residual", [images], [logits], list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", 19)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def sample_images(count: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Smooth noise [count, 3, 16, 16], float32."""
    noise = np.random.default_rng(seed).standard_normal((count, *IMAGE_SHAPE))
    return (noise + np.roll(noise, 1, axis=2) + np.roll(noise, 1, axis=3)).astype(np.float32)


def residual_net(
    precision: Precision, *, rest: Rest = np.float32, channels: int = 16, amax_factor: float = 1.0
) -> onnx.ModelProto:
    """The network at ``precision``; ``rest`` is the type of what INT8 leaves alone.

    ``amax_factor`` below 1 clips activations, so that their integers use the whole range.
    """
    if precision == "fp32":
        return _Builder(np.float32, {}, channels).model()
    if precision == "fp16":
        return _Builder(np.float16, {}, channels).model()
    ranges = _ranges(_Builder(np.float32, {}, channels).model())
    if rest is np.float16:
        ranges["images_half"] = ranges["images"]
    return _Builder(rest, {name: amax * amax_factor for name, amax in ranges.items()}, channels).model()


def _ranges(model: onnx.ModelProto) -> dict[str, float]:
    """Largest magnitude of every tensor of a float graph on sample images."""
    names = [name for node in model.graph.node for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = sample_images(8, seed=7)
    values = session.run(None, {"images": images})
    return {"images": float(np.abs(images).max())} | {
        name: float(np.abs(value).max()) for name, value in zip(names, values, strict=True)
    }


def saved(model: onnx.ModelProto, directory: Path) -> Path:
    """Path of ``model`` written as ``model.onnx`` into ``directory``."""
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path

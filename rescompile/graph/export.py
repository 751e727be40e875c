"""A PyTorch ResNet as an fp32 ONNX graph, named by block, with batch norm still in it.

The network is walked, not traced: so the graph has exactly the names of ``shared.names`` and nothing that a tracer
happens to add, and ResNet-1202 takes a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import write
from rescompile.graph.shared.names import INPUT, OPSET, OUTPUT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rescompile.models.resnet import Block, OptionA, ResNet


def export(model: ResNet, *, image_size: int | tuple[int, int]) -> onnx.ModelProto:
    """The fp32 graph of ``model``: input ``input`` [N, C, H, W] float32, output ``logits`` [N, classes] float32."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    writer = _Writer()
    x = gs.Variable(INPUT, np.float32, ["N", model.conv1.in_channels, height, width])
    writer.graph.inputs = [x]
    x = writer.conv_bn(x, model.conv1, model.bn1, "conv1", "bn1")
    x = writer.node("Relu", "relu1", [x])
    if model.maxpool is not None:
        x = writer.max_pool(x, model.maxpool)
    for name, block in model.blocks():
        x = writer.block(x, block, name)
    x = writer.node("GlobalAveragePool", "avgpool", [x])
    x = writer.node("Flatten", "flatten", [x], axis=1)
    weight, bias = writer.constant("fc.weight", model.fc.weight), writer.constant("fc.bias", model.fc.bias)
    logits = writer.node("Gemm", "fc", [x, weight, bias], transB=1)
    logits.name, logits.dtype, logits.shape = OUTPUT, np.float32, ["N", model.fc.out_features]
    writer.graph.outputs = [logits]
    return write(writer.graph)


class _Writer:
    """Appends nodes to a graph; each method returns the new tensor."""

    def __init__(self) -> None:
        self.graph = gs.Graph(opset=OPSET, name="rescompile")

    def node(self, op: str, name: str, inputs: list[gs.Tensor], **attrs: object) -> gs.Variable:
        output = gs.Variable(name, np.float32)
        self.graph.nodes.append(gs.Node(op, name, attrs, inputs, [output]))
        return output

    def constant(self, name: str, tensor: Tensor) -> gs.Constant:
        return gs.Constant(name, tensor.detach().float().cpu().contiguous().numpy())

    def conv_bn(
        self, x: gs.Variable, conv: nn.Conv2d, norm: nn.BatchNorm2d, conv_name: str, norm_name: str
    ) -> gs.Variable:
        weights = [self.constant(f"{conv_name}.weight", conv.weight)]
        if conv.bias is not None:
            weights.append(self.constant(f"{conv_name}.bias", conv.bias))
        x = self.node(
            "Conv", conv_name, [x, *weights],
            kernel_shape=list(conv.kernel_size), strides=list(conv.stride), pads=[*conv.padding, *conv.padding],
            dilations=list(conv.dilation), group=conv.groups,
        )  # fmt: skip
        keys = ("weight", "bias", "running_mean", "running_var")
        constants = [self.constant(f"{norm_name}.{key}", getattr(norm, key)) for key in keys]
        return self.node("BatchNormalization", norm_name, [x, *constants], epsilon=norm.eps)

    def max_pool(self, x: gs.Variable, pool: nn.MaxPool2d) -> gs.Variable:
        return self.node(
            "MaxPool", "maxpool", [x],
            kernel_shape=[pool.kernel_size] * 2, strides=[pool.stride] * 2, pads=[pool.padding] * 4,
        )  # fmt: skip

    def block(self, x: gs.Variable, block: Block, name: str) -> gs.Variable:
        skip = self.shortcut(x, block, name) if block.form.residual else None
        convs = block.convs()
        for index, (conv, norm) in enumerate(convs, start=1):
            x = self.conv_bn(x, conv, norm, f"{name}.conv{index}", f"{name}.bn{index}")
            if index < len(convs):
                x = self.node("Relu", f"{name}.relu{index}", [x])
        if skip is not None:
            x = self.node("Add", f"{name}.add", [x, skip])
        return self.node("Relu", f"{name}.relu", [x])

    def shortcut(self, x: gs.Variable, block: Block, name: str) -> gs.Variable:
        from rescompile.models.resnet import OptionA, Projection

        shortcut = block.downsample
        if shortcut is None:
            return x
        if isinstance(shortcut, OptionA):
            return self.option_a(x, shortcut, name)
        assert isinstance(shortcut, Projection)  # pre-activation networks are traced instead
        return self.conv_bn(x, shortcut.conv, shortcut.bn, f"{name}.downsample", f"{name}.downsample.bn")

    def option_a(self, x: gs.Variable, shortcut: OptionA, name: str) -> gs.Variable:
        """Write every ``stride``-th pixel with zero channels on both sides (He et al., 2015, section 3.3)."""
        slicing = {"starts": [0, 0], "ends": [2**31 - 1] * 2, "axes": [2, 3], "steps": [shortcut.stride] * 2}
        inputs = [
            gs.Constant(f"{name}.slice1.{key}", np.array(value, np.int64)) for key, value in slicing.items()
        ]
        x = self.node("Slice", f"{name}.slice1", [x, *inputs])
        before, after = shortcut.pad_channels
        pads = gs.Constant(f"{name}.shortcut.pads", np.array([0, before, 0, 0, 0, after, 0, 0], np.int64))
        return self.node("Pad", f"{name}.shortcut", [x, pads], mode="constant")

"""Random small graphs of the operators that residual networks use, and narrow networks of several families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from tests.calibration.single_operations import graph


@dataclass(repr=False)
class Writer:
    """Writes a graph node by node; tensors are named like the nodes that make them."""

    shape: tuple[int, int, int]
    """Shape of the image: [C, H, W]."""
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensor to [C, H, W], or [C] behind a Flatten."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.sizes["x"] = self.shape

    def __repr__(self) -> str:
        return f"Writer({', '.join(node.name for node in self.nodes)})"

    def add(self, op: str, inputs: list[str], size: tuple[int, ...], **attributes: Any) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.sizes[name] = size
        return name

    def constant(self, values: NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = values.astype(np.float32) if values.dtype == np.float64 else values
        return name

    def conv(
        self,
        x: str,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        pads: list[int] | None = None,
    ) -> str:
        channels, height, width = self.sizes[x]
        pads = [kernel // 2] * 4 if pads is None else pads
        fan = channels // group * kernel**2
        weight = self.random.normal(size=(outputs, channels // group, kernel, kernel)) * np.sqrt(2 / fan)
        weight *= np.exp(self.random.normal(size=(outputs, 1, 1, 1)) / 2)  # channels of different ranges
        names = [self.constant(weight.astype(np.float32))]
        names.append(self.constant(self.random.normal(size=outputs).astype(np.float32) / 4))
        size = (
            outputs,
            (height + pads[0] + pads[2] - kernel) // stride + 1,
            (width + pads[1] + pads[3] - kernel) // stride + 1,
        )
        return self.add(
            "Conv", [x, *names], size, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=group,
            dilations=[1, 1],
        )  # fmt: skip

    def relu(self, x: str) -> str:
        return self.add("Relu", [x], self.sizes[x])

    def norm(self, x: str) -> str:
        count = self.sizes[x][0]
        values = [np.exp(self.random.normal(size=count) / 2), self.random.normal(size=count) / 4]
        values += [self.random.normal(size=count) / 4, np.exp(self.random.normal(size=count) / 2)]
        names = [self.constant(each.astype(np.float32)) for each in values]
        return self.add("BatchNormalization", [x, *names], self.sizes[x])

    def clip(self, x: str) -> str:
        return self.add(
            "Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))], self.sizes[x]
        )

    def gate(self, x: str, op: str = "Sigmoid") -> str:
        """Squeeze and excitation."""
        count = self.sizes[x][0]
        pooled = self.add("GlobalAveragePool", [x], (count, 1, 1))
        hidden = self.relu(self.conv(pooled, max(count // 2, 1), 1))
        opened = self.add(op, [self.conv(hidden, count, 1)], (count, 1, 1))
        return self.add("Mul", [x, opened], self.sizes[x])

    def pool(
        self, x: str, op: str = "MaxPool", kernel: int = 2, stride: int = 1, pads: list[int] | None = None
    ) -> str:
        channels, height, width = self.sizes[x]
        pads = [0, 0, 1, 1] if pads is None else pads
        size = (
            channels,
            (height + pads[0] + pads[2] - kernel) // stride + 1,
            (width + pads[1] + pads[3] - kernel) // stride + 1,
        )
        return self.add(op, [x], size, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def concat(self, *inputs: str) -> str:
        count = sum(self.sizes[each][0] for each in inputs)
        return self.add("Concat", list(inputs), (count, *self.sizes[inputs[0]][1:]), axis=1)

    def sum(self, left: str, right: str) -> str:
        return self.add("Add", [left, right], self.sizes[left])

    def shuffle(self, x: str) -> str:
        count, height, width = self.sizes[x]
        order = self.random.permutation(count)
        return self.add("Gather", [x, self.constant(order)], (count, height, width), axis=1)

    def move(self, x: str, op: str) -> str:
        """An operation that only moves values."""
        count, height, width = self.sizes[x]
        if op == "Split":
            size = ((count + 1) // 2, height, width)
            name = self.add(op, [x], size, axis=1, num_outputs=2)
            self.nodes[-1].output.append(f"{name}.second")
            self.sizes[f"{name}.second"] = (count // 2, height, width)
            return name
        if op == "Slice":
            ends = [self.constant(np.array([each])) for each in (0, height - 1, 2)]
            return self.add(op, [x, *ends], (count, height - 1, width))
        if op == "Pad":
            pads = self.constant(np.array([0, 1, 0, 0, 0, 3, 1, 0]))
            return self.add(op, [x, pads], (count + 4, height + 1, width))
        if op == "SpaceToDepth":
            return self.add(op, [x], (4 * count, height // 2, width // 2), blocksize=2)
        assert op == "Transpose"
        return self.add(op, [x], (count, width, height), perm=[0, 1, 3, 2])

    def resize(self, x: str, mode: str) -> str:
        channels, height, width = self.sizes[x]
        scales = self.constant(np.array([1, 1, 1.5, 0.7], np.float32))
        return self.add("Resize", [x, "", scales], (channels, height * 3 // 2, int(width * 0.7)), mode=mode)

    def head(self, x: str, classes: int = 5) -> str:
        pooled = self.add("GlobalAveragePool", [x], (self.sizes[x][0], 1, 1))
        flat = self.add("Flatten", [pooled], self.sizes[x][:1], axis=1)
        return self.linear(flat, classes)

    def linear(self, x: str, outputs: int) -> str:
        (count,) = self.sizes[x]
        names = [
            self.constant(self.random.normal(size=size).astype(np.float32) / np.sqrt(count))
            for size in ((outputs, count), (outputs,))
        ]
        return self.add("Gemm", [x, *names], (outputs,), transB=1)

    def done(self, *outputs: str) -> onnx.ModelProto:
        return graph(self.nodes, ("N", *self.shape), self.constants, outputs)

    def quantizable(self) -> list[str]:
        """Inputs of the convolutions and linear layers that are not gates, each once, in the order of execution."""
        found = [node.input[0] for node in self.nodes if node.op_type in ("Conv", "Gemm")]
        return [
            name for name in dict.fromkeys(found) if len(self.sizes[name]) == 1 or self.sizes[name][1] > 1
        ]


Step = Callable[[Writer, str, st.DrawFn], str]


def _grouped(writer: Writer, x: str, draw: st.DrawFn) -> str:
    count = writer.sizes[x][0]
    group = draw(st.sampled_from([each for each in (1, 2, 4, count) if count % each == 0]))
    return writer.conv(
        x, count, 3, group=group, pads=draw(st.sampled_from([[1, 1, 1, 1], [0, 1, 2, 1], [0, 0, 2, 2]]))
    )


def _residual(writer: Writer, x: str, draw: st.DrawFn) -> str:
    inner = writer.relu(_grouped(writer, x, draw))
    return writer.relu(writer.sum(writer.conv(inner, writer.sizes[x][0], 1), x))


def _moved_branch(writer: Writer, x: str, draw: st.DrawFn) -> str:
    """Two convolutions, one of which reads ``x`` moved: both quantizers hold the same values."""
    size = writer.sizes[x]
    op = draw(st.sampled_from(["Split", "Transpose"] if size[1] == size[2] else ["Split"]))
    other = writer.conv(writer.move(x, op), 8, draw(st.sampled_from([1, 3])))
    return writer.sum(writer.relu(writer.conv(x, 8, 1)), other)


STEPS: dict[str, Step] = {
    "conv": lambda writer, x, draw: writer.conv(x, draw(st.sampled_from([4, 8])), draw(st.sampled_from([1, 3]))),
    "grouped": _grouped,
    "residual": _residual,
    "relu": lambda writer, x, draw: writer.relu(x),
    "relu6": lambda writer, x, draw: writer.clip(x),
    "leaky": lambda writer, x, draw: writer.add("LeakyRelu", [x], writer.sizes[x], alpha=0.1),
    "swish": lambda writer, x, draw: writer.add("HardSwish", [x], writer.sizes[x]),
    "norm": lambda writer, x, draw: writer.norm(x),
    "gate": lambda writer, x, draw: writer.gate(x, draw(st.sampled_from(["Sigmoid", "HardSigmoid"]))),
    "max pool": lambda writer, x, draw: writer.pool(x),
    "average pool": lambda writer, x, draw: writer.pool(x, "AveragePool"),
    "concat": lambda writer, x, draw: writer.concat(x, writer.relu(writer.conv(x, 4))),
    "shuffle": lambda writer, x, draw: writer.shuffle(x),
    "move": lambda writer, x, draw: writer.move(x, draw(st.sampled_from(["Split", "Slice", "Pad", "Transpose"]))),
    "moved branch": _moved_branch,
    "resize": lambda writer, x, draw: writer.resize(x, draw(st.sampled_from(["nearest", "linear"]))),
}  # fmt: skip


@st.composite
def networks(draw: st.DrawFn) -> tuple[Writer, onnx.ModelProto]:
    """A random chain of ``STEPS`` between a stem and one or two heads, 1 to 4 input channels, not always square."""
    shape = (draw(st.integers(1, 4)), *draw(st.sampled_from([(6, 6), (7, 5)])))
    writer = Writer(shape, draw(st.integers(0, 999)))
    x = writer.relu(writer.conv("x", 4))
    for name in draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5)):
        x = STEPS[name](writer, x, draw)
    ends = [writer.head(x)]
    if draw(st.booleans()):
        ends.append(writer.head(x, 3))
    if draw(st.booleans()):
        ends.append(x)
    return writer, writer.done(*ends)


def resnext() -> onnx.ModelProto:
    """Grouped 3x3 convolutions in residual blocks, one with a downsample convolution."""
    writer = Writer((3, 16, 16))
    x = writer.relu(writer.conv("x", 8))
    for outputs, stride in ((8, 1), (16, 2)):
        inner = writer.relu(writer.conv(x, 16, 1))
        inner = writer.relu(writer.conv(inner, 16, 3, stride, group=4))
        skip = x if stride == 1 else writer.conv(x, outputs, 1, stride)
        x = writer.relu(writer.sum(writer.conv(inner, outputs, 1), skip))
    return writer.done(writer.head(x))


def squeezed(heads: int = 2) -> onnx.ModelProto:
    """Squeeze and excitation in residual blocks."""
    writer = Writer((1, 12, 16))
    x = writer.relu(writer.conv("x", 8))
    for op in ("Sigmoid", "HardSigmoid"):
        inner = writer.conv(writer.relu(writer.conv(x, 8)), 8)
        x = writer.relu(writer.sum(writer.gate(inner, op), x))
    return writer.done(*(writer.head(x, classes) for classes in (5, 3)[:heads]))


def pre_activation() -> onnx.ModelProto:
    """Batch norms in front of the blocks, which stay."""
    writer = Writer((3, 16, 16))
    x = writer.conv("x", 8)
    for _ in range(2):
        inner = writer.relu(writer.norm(x))
        inner = writer.relu(writer.conv(inner, 8))
        x = writer.sum(writer.conv(inner, 8), x)
    return writer.done(writer.head(writer.relu(writer.norm(x))))


def mobile(activation: str = "relu6") -> onnx.ModelProto:
    """Depthwise convolutions, padded as TensorFlow does at stride 2."""
    writer = Writer((3, 16, 16))
    act = {"relu6": writer.clip, "relu": writer.relu}[activation]
    x = act(writer.conv("x", 8, 3, 2, pads=[0, 0, 1, 1]))
    for stride in (1, 2, 1):
        inner = act(writer.conv(x, 16, 1))
        pads = [1, 1, 1, 1] if stride == 1 else [0, 0, 1, 1]
        inner = act(writer.conv(inner, 16, 3, stride, group=16, pads=pads))
        made = writer.conv(inner, 8, 1)
        x = writer.sum(made, x) if stride == 1 else made
    return writer.done(writer.head(x))


def dense() -> onnx.ModelProto:
    """Concatenations, and an average pool between the stages."""
    writer = Writer((4, 16, 12))
    x = writer.relu(writer.conv("x", 8))
    for _ in range(3):
        x = writer.concat(x, writer.relu(writer.conv(x, 4)))
    x = writer.pool(writer.relu(writer.conv(x, 8, 1)), "AveragePool", 2, 2, [0, 0, 0, 0])
    return writer.done(writer.head(writer.concat(x, writer.relu(writer.conv(x, 4)))))


def plain() -> onnx.ModelProto:
    """Convolutions and max pools, and a head of two layers on a flattened plane, as VGG."""
    writer = Writer((3, 8, 8))
    x = writer.pool(writer.relu(writer.conv("x", 8)), "MaxPool", 2, 2, [0, 0, 0, 0])
    x = writer.pool(writer.relu(writer.conv(x, 16)), "MaxPool", 2, 2, [0, 0, 0, 0])
    flat = writer.add("Flatten", [x], (16 * 4,), axis=1)
    hidden = writer.relu(writer.linear(flat, 16))
    return writer.done(writer.linear(hidden, 5))


FAMILIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnext": resnext, "squeezed": lambda: squeezed(1), "two heads": squeezed, "pre-activation": pre_activation,
    "mobile": mobile,
    "mobile with ReLU": lambda: mobile("relu"), "dense": dense, "plain": plain,
}  # fmt: skip


@st.composite
def dags(draw: st.DrawFn) -> tuple[Writer, onnx.ModelProto]:
    """A random graph whose operations read any of the tensors so far; what none reads is joined, or an output."""
    writer = Writer((3, 8, 8), draw(st.integers(0, 999)))
    made = [writer.relu(writer.conv("x", 8))]
    for _ in range(draw(st.integers(3, 8))):
        x = draw(st.sampled_from(made))
        kind = draw(
            st.sampled_from(
                [
                    "conv",
                    "stride",
                    "add",
                    "concat",
                    "grouped",
                    "gate",
                    "pool",
                    "residual",
                    "shuffle",
                    "moved branch",
                ]
            )
        )
        if kind == "stride" and min(writer.sizes[x][1:]) > 3:
            x = writer.relu(writer.conv(x, 16, 3, 2))
        elif kind in ("add", "concat"):
            x = _joined(writer, x, draw(st.sampled_from(made)), kind)
        elif kind in ("grouped", "residual", "shuffle", "moved branch"):
            x = STEPS[kind](writer, x, draw)
        elif kind == "gate":
            x = writer.gate(x)
        elif kind == "pool":
            x = writer.pool(x, draw(st.sampled_from(["MaxPool", "AveragePool"])))
        else:
            x = writer.conv(x, draw(st.sampled_from([8, 16])), draw(st.sampled_from([1, 3])))
        made.append(writer.relu(x) if draw(st.booleans()) else x)
    read = {name for node in writer.nodes for name in node.input}
    ends = [each for each in made if each not in read]
    while len(ends) > 2:
        ends.append(_joined(writer, ends.pop(0), ends.pop(0), "add"))
    return writer, writer.done(
        *(writer.head(each, classes) for each, classes in zip(ends, (5, 3), strict=False))
    )


def _joined(writer: Writer, left: str, right: str, kind: str) -> str:
    """Two tensors added or side by side, after convolutions that give them one size where they have none."""
    height = min(writer.sizes[left][1], writer.sizes[right][1])
    sides = []
    for each in (left, right):
        side = each
        while writer.sizes[side][1] > height:
            side = writer.conv(side, 8, 3, 2)
        sides.append(side)
    if kind == "concat":
        return writer.concat(*sides)
    if writer.sizes[sides[0]] != writer.sizes[sides[1]] or sides[0] == sides[1]:
        sides = [writer.conv(each, 8, 1) for each in sides]
    return writer.sum(*sides)


WILD: dict[str, Step] = {
    **STEPS,
    "add": lambda writer, x, draw: writer.sum(x, draw(st.sampled_from(_alike(writer, x, channels=True)))),
    "side by side": lambda writer, x, draw: writer.concat(
        x, draw(st.sampled_from(_alike(writer, x, channels=False)))
    ),
    "stride": lambda writer, x, draw: writer.conv(x, 8, 3, 2),
    "scale": lambda writer, x, draw: writer.add(
        "Mul", [x, writer.constant(np.float32(draw(st.sampled_from([0.5, -1.5]))))], writer.sizes[x]
    ),
    "up": lambda writer, x, draw: _doubled(writer, x),
    "tanh": lambda writer, x, draw: writer.add("Tanh", [x], writer.sizes[x]),
    "silu": lambda writer, x, draw: writer.add(
        "Mul", [x, writer.add("Sigmoid", [x], writer.sizes[x])], writer.sizes[x]
    ),
    "floor": lambda writer, x, draw: writer.add("Max", [x, writer.constant(np.float32(-0.3))], writer.sizes[x]),
    "neg": lambda writer, x, draw: writer.add("Neg", [x], writer.sizes[x]),
    "average of 3": lambda writer, x, draw: writer.pool(x, "AveragePool", 3, 1, [1, 1, 1, 1]),
}  # fmt: skip
SHRINKING = {"max pool", "average pool", "average of 3", "stride", "move", "resize"}


@st.composite
def wild(draw: st.DrawFn) -> tuple[Writer, onnx.ModelProto]:
    """A random graph of every step, most of whose tensors are signed."""
    writer = Writer((3, 8, 8), draw(st.integers(0, 999)))
    made = [writer.relu(writer.conv("x", 8))]
    for _ in range(draw(st.integers(4, 10))):
        x = draw(st.sampled_from(made[-4:]))
        name = draw(st.sampled_from(sorted(WILD)))
        small = min(writer.sizes[x][1:]) < 3 and name in SHRINKING
        x = WILD["conv" if small else name](writer, x, draw)
        made.append(writer.conv(x, 8, 1) if writer.sizes[x][0] > 48 else x)
    ends = [writer.head(made[-1])]
    if draw(st.booleans()):
        ends.append(writer.head(writer.conv(made[-2], 8), 3))
    if draw(st.booleans()):
        ends.append(writer.conv(made[-1], 8))
    return writer, writer.done(*ends)


def _alike(writer: Writer, x: str, *, channels: bool) -> list[str]:
    """The tensors of the height and width of ``x``, and of as many ``channels``."""
    first = 0 if channels else 1
    return [
        name
        for name, size in writer.sizes.items()
        if name != "x" and len(size) == 3 and size[first:] == writer.sizes[x][first:]
    ]


def _doubled(writer: Writer, x: str) -> str:
    """Twice as high and wide, by a transposed convolution; large images stay as they are."""
    count, height, width = writer.sizes[x]
    if max(height, width) > 8:
        return writer.conv(x, 8, 1)
    weight = writer.random.normal(size=(count, 8, 2, 2)) / np.sqrt(count)
    return writer.add(
        "ConvTranspose", [x, writer.constant(weight)], (8, 2 * height, 2 * width),
        kernel_shape=[2, 2], strides=[2, 2],
    )  # fmt: skip

"""The deployable graph becomes the steps that one reads off its blocks; what no kernel computes is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from calibration.preprocess import CIFAR
from fused_kernels.operands.zero_point import zero_sums
from rescompile.backends.triton.lowering.network import lower
from rescompile.backends.triton.step_executor import StepExecutor
from rescompile.backends.triton.steps import Convolution, Stem, Widen, Window, fused_adds
from rescompile.errors import BackendError
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.shared.metadata import offsets_of, real_channels
from rescompile.graph.shared.names import PIXEL_STEP
from tests.backends.triton.networks import FULL_RANGE, SIDES, deployable, floats, folded, network

BLOCKS = {
    "cifar": "conv1 layer1.0.conv1 layer1.0.conv2 layer2.0.shortcut layer2.0.conv1 layer2.0.conv2 fc",
    "basic": "conv1 layer1.0.conv1 layer1.0.conv2 layer2.0.downsample layer2.0.conv1 layer2.0.conv2 fc",
    "bottleneck": "conv1 layer1.0.downsample layer1.0.conv1 layer1.0 layer1.1 layer2.0.downsample layer2.0 fc",
    "stride on 1x1": "conv1 layer1.0.downsample layer1.0.conv1 layer1.0 layer2.0.downsample layer2.0.conv1 layer2.0 fc",
}
BLOCKS |= {f"{name}{FULL_RANGE}": blocks for name, blocks in BLOCKS.items() if name != "cifar"}


def lowered(model: onnx.ModelProto, name: str = "basic") -> Any:
    return lower(model, (SIDES[name], SIDES[name]))


def edited(name: str, edit: Callable[[onnx.GraphProto], None], precision: Any = "int8") -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(deployable(name, precision))
    edit(model.graph)
    return model


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_steps_are_the_blocks(name: str, precision: Any) -> None:
    steps = network(name, precision).steps
    assert [step.name for step in steps] == BLOCKS[name].split()
    assert fused_adds(steps) == (3 if name.startswith("bottleneck") else 2)


def test_a_step_says_what_is_fused() -> None:
    stem, conv, last = lowered(deployable("cifar", "int8"), "cifar").steps[:3]
    assert stem == Stem("conv1", "relu1", Window(3, 3, 1, 1), False, False, stem.image_scale, "float32", True)
    assert conv == Convolution("layer1.0.conv1", "relu1", "layer1.0.relu1", Window(3, 3, 1, 1), True)
    assert (last.relu, last.residual, last.output) == (True, "relu1", "layer1.0.relu")


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck, full range"])
def test_a_tensor_of_full_range_has_no_relu(name: str) -> None:
    model = deployable(name, "int8")
    steps = lowered(model, name).steps
    made = [step for step in steps if isinstance(step, Stem | Convolution) and "downsample" not in step.name]
    bare = {step.output for step in made if not step.relu}
    assert bare == set(offsets_of(model))
    assert len(bare) == (9 if name.endswith(FULL_RANGE) else 0)
    residuals = [step.name for step in made if isinstance(step, Convolution) and step.residual and step.relu]
    assert "layer2.0.conv3" in residuals, "the last block keeps its ReLU"


def test_convolutions_that_pad_a_tensor_of_full_range_have_zero_sums() -> None:
    """The zero sums replace the graph's constant channels, which the plan's tensors and weights do not have."""
    model = deployable("basic, full range", "int8")
    assert real_channels(model)
    made = lowered(model, "basic, full range")
    padding = [step for step in made.steps if isinstance(step, Convolution) and step.window.padding]
    assert padding
    assert all(step.zero_sums for step in padding)
    for step in padding:
        w = torch.tensor(made.weights[f"{step.name}.weight"]).permute(0, 3, 1, 2)
        np.testing.assert_array_equal(made.weights[f"{step.name}.zero_sums"], zero_sums(w, -128).numpy())
    shapes = {step.name: made.weights[f"{step.name}.weight"].shape for step in padding}
    assert shapes["layer1.0.conv1"] == (16, 3, 3, 16)
    assert not any(
        step.zero_sums for step in lowered(deployable("basic", "int8")).steps if isinstance(step, Convolution)
    )


@pytest.mark.parametrize("pixels", [False, True])
def test_a_stem_that_reads_pixels_has_the_way_back(pixels: bool) -> None:
    made = network("basic, full range", "int8", pixels=pixels)
    stem = made.steps[0]
    assert isinstance(stem, Stem)
    assert (stem.normalized, stem.margin, stem.undone, stem.window.padding) == (pixels, 3, True, 0)
    factor, offset = made.weights["input.undo_factor"], made.weights["input.undo_offset"]
    assert factor.shape == offset.shape == (3,)
    # bytes come with one multiplication for both ways
    assert (factor == 1).all() == pixels
    assert stem.image_scale == PIXEL_STEP


def test_a_shortcut_of_a_tensor_of_full_range_adds_its_zero() -> None:
    steps = network("cifar, full range", "int8").steps
    (widen,) = [step for step in steps if isinstance(step, Widen)]
    assert widen.zero_point == -128
    (plain,) = [step for step in network("cifar", "int8").steps if isinstance(step, Widen)]
    assert plain.zero_point == 0


@pytest.mark.parametrize(("precision", "rest"), [("int8", "float32"), ("fp16", "float16")])
def test_pixels_are_normalized_by_the_stem(precision: Any, rest: str) -> None:
    made = network("basic", precision, pixels=True)
    assert (made.steps[0].normalized, made.steps[0].rest) == (True, rest)
    assert made.weights["input.factor"].shape == made.weights["input.offset"].shape == (3,)


def test_int8_weights_keep_their_integers() -> None:
    made = network("basic", "int8")
    stored = {tensor.name: tensor for tensor in deployable("basic", "int8").graph.initializer}
    values = numpy_helper.to_array(stored["layer1.0.conv1.weight.int8"])
    np.testing.assert_array_equal(made.weights["layer1.0.conv1.weight"], values.transpose(0, 2, 3, 1))


def split_slice(graph: onnx.GraphProto) -> None:
    """One slice for each axis, and the pad before the second: as exporters write it, and in another order."""
    first, pad = node(graph, "layer2.0.slice1"), node(graph, "layer2.0.shortcut")
    pad.input[0] = first.output[0]
    last = onnx.NodeProto()
    last.CopyFrom(first)
    last.name, last.output[0], last.input[0] = "layer2.0.slice2", pad.output[0], "padded"
    pad.output[0] = "padded"
    graph.node.insert(list(graph.node).index(pad) + 1, last)
    for axis, each in ((2, first), (3, node(graph, "layer2.0.slice2"))):
        for position, value in enumerate((0, 2**31 - 1, axis, 2), start=1):
            name = f"{each.name}.{position}"
            graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
            each.input[position] = name


def test_a_shortcut_may_be_sliced_and_padded_in_any_order() -> None:
    model = edited("cifar", split_slice)
    onnx.checker.check_model(model)
    made = lowered(model, "cifar")
    assert Widen("layer2.0.slice2", "layer1.0.relu", "layer2.0.shortcut", 2, 8, 8) in made.steps
    x = torch.from_numpy(floats("cifar", 2))
    both = [
        StepExecutor(n.steps, {k: torch.tensor(v) for k, v in n.weights.items()})(x)
        for n in (made, network("cifar", "int8"))
    ]
    assert torch.equal(*both)


def test_a_float_add_runs_in_one_of_its_convolutions_whichever_way_it_is_written() -> None:
    def swap(graph: onnx.GraphProto) -> None:
        add = node(graph, "layer2.0.add")
        add.input[:] = list(add.input)[::-1]

    steps = lowered(edited("basic", swap, "fp16")).steps
    assert [step.name for step in steps if getattr(step, "residual", None)] == [
        "layer1.0.conv2",
        "layer2.0.downsample",
    ]


def set_attribute(name: str, key: str, value: Any) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        target = node(graph, name)
        kept = [entry for entry in target.attribute if entry.name != key]
        del target.attribute[:]
        target.attribute.extend([*kept, helper.make_attribute(key, value)])

    return edit


def replace_constant(name: str, change: Callable[[Any], Any]) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))

    return edit


def reread(name: str, position: int, tensor: str) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        node(graph, name).input[position] = tensor

    return edit


def become(name: str, op: str) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        node(graph, name).op_type = op

    return edit


REFUSED: dict[str, tuple[str, Callable[[onnx.GraphProto], None], str]] = {
    "groups": ("basic", set_attribute("layer1.0.conv1", "group", 2), "'layer1.0.conv1' .Conv.: .*groups"),
    "dilations": ("basic", set_attribute("conv1", "dilations", [2, 2]), "neither groups nor dilations"),
    "strides": ("basic", set_attribute("layer1.0.conv1", "strides", [1, 2]), "one stride"),
    "auto pad": ("basic", set_attribute("conv1", "auto_pad", "SAME_UPPER"), "one stride and one padding"),
    "pool": (
        "basic",
        set_attribute("maxpool", "strides", [3, 3]),
        "'maxpool' .MaxPool.: .*3x3 with stride 2",
    ),
    "other op": ("basic", become("layer1.0.relu1", "Sigmoid"), "'layer1.0.relu1' .Sigmoid.: no fused kernel"),
    "zero point": (
        "basic",
        replace_constant("layer1.0.relu1.zero_point", lambda v: np.array(3, np.int8)),
        "symmetric int8",
    ),
    "mixed precision": (
        "basic",
        reread("layer1.0.conv2", 0, "layer1.0.relu1"),
        "'layer1.0.relu1' is read in several .*networks of mixed precision have no plan yet",
    ),
    "two forms of a tensor": (
        "basic",
        reread("layer1.0.add", 1, "maxpool"),
        "keeps one form of each tensor, but 'maxpool' is read in several",
    ),
    "a weight in float": (
        "basic",
        reread("layer1.0.conv2", 1, "layer1.0.conv2.weight.int8"),
        "'layer1.0.conv2' .Conv.: its input, weight, residual and output",
    ),
    "scale of a shortcut": (
        "cifar",
        replace_constant("layer2.0.shortcut.scale", lambda v: v * 2),
        "'layer2.0.shortcut' .Pad.: .*must keep the scale of its input",
    ),
    "padding by values": (
        "cifar",
        replace_constant("layer2.0.shortcut.pads", lambda v: v + np.array([0, 0, 1, 0, 0, 0, 0, 0])),
        "padded with channels of zeros",
    ),
    "padding with another zero": (
        "cifar, full range",
        replace_constant("layer2.0.shortcut.value", lambda v: v / 2),
        "'layer2.0.shortcut' .Pad.: a shortcut must be padded with channels of zeros",
    ),
    "an image padded unevenly": (
        "basic, full range",
        replace_constant("pixels.pad.amounts", lambda v: v + np.array([0, 0, 1, 0, 0, 0, 0, 0])),
        "'pixels.pad' .Pad.: an image must be padded by the same number on every side",
    ),
    "an image with more channels": (
        "basic, full range",
        replace_constant("pixels.pad.amounts", lambda v: v + np.array([0, 1, 0, 0, 0, 0, 0, 0])),
        "'pixels.pad' .Pad.: an image must be padded with zeros, on its four sides",
    ),
    "an image padded with a value": (
        "basic, full range",
        lambda graph: node(graph, "pixels.pad").input.append("pixels.scale"),
        "'pixels.pad' .Pad.: an image must be padded with zeros, on its four sides",
    ),
    "an image cropped": (
        "basic, full range",
        replace_constant("pixels.pad.amounts", lambda v: -v),
        "'pixels.pad' .Pad.: an image must be padded by the same number",
    ),
    "an image added to twice": (
        "basic, full range",
        become("pixels.multiply", "Add"),
        "'pixels.multiply' .Add.: an image may only be padded, multiplied and added to",
    ),
    "an image scaled by what is computed": (
        "basic, full range",
        reread("pixels.multiply", 1, "pixels.pad"),
        "'pixels.multiply' .Mul.: an image must be normalized by constants",
    ),
    "a cropped shortcut": (
        "cifar",
        replace_constant("layer2.0.slice1.starts", lambda v: v + 1),
        "every n-th pixel of the whole plane",
    ),
    "two strides of a shortcut": (
        "cifar",
        replace_constant("layer2.0.slice1.steps", lambda v: np.array([2, 1])),
        "same stride in both axes",
    ),
    "weight axis": (
        "basic",
        set_attribute("layer1.0.conv1.weight.dequantize", "axis", 1),
        "one scale for each output channel",
    ),
    "classifier": ("basic", set_attribute("fc", "transB", 0), "'fc' .Gemm.: .*constant weights"),
    "head in float": (
        "basic",
        reread("fc", 0, "flatten"),
        "'fc' .Gemm.: the pool's input, its output and the weight",
    ),
    "a residual of its own": (
        "cifar",
        reread("layer1.0.add", 1, "input.dequantize"),
        "'layer1.0.conv2' .Conv.: no step makes 'input', which it reads",
    ),
    "scale differs": (
        "basic",
        reread("layer1.0.relu1.dequantize", 1, "maxpool.scale"),
        "its scale is not that of its QuantizeLinear",
    ),
    "too many channels": (
        "basic",
        replace_constant("conv1.weight.int8", lambda v: np.repeat(v, 2, axis=1)),
        "at most 4 channels",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_kernel_computes_is_refused_by_name(case: str) -> None:
    name, edit, words = REFUSED[case]
    with pytest.raises(BackendError, match=words):
        lowered(edited(name, edit), name)


@pytest.mark.parametrize(
    ("relu", "words"),
    [
        (
            "relu1",
            "'conv1' .Conv.: the first convolution must be followed by a ReLU alone, or by INT8's quantizer",
        ),
        (
            "layer1.0.relu",
            "'layer1.0.add' .Add.: a residual add must be followed by a ReLU, or by INT8's quantizer",
        ),
    ],
)
def test_a_relu_is_missed_in_floating_point(relu: str, words: str) -> None:
    def drop(graph: onnx.GraphProto) -> None:
        gone = node(graph, relu)
        for each in graph.node:
            for position, name in enumerate(each.input):
                if name == gone.output[0]:
                    each.input[position] = gone.input[0]
        graph.node.remove(gone)

    with pytest.raises(BackendError, match=words):
        lowered(edited("cifar", drop, "fp16"), "cifar")


def test_an_image_too_small_for_the_window_is_refused() -> None:
    model = edited("basic", set_attribute("conv1", "pads", [0, 0, 0, 0]))
    with pytest.raises(
        BackendError, match=r"'conv1' .Conv.: a 7x7 convolution .* needs a larger input than 3x3"
    ):
        lower(model, (3, 3))


def test_a_mean_image_in_the_graph_is_refused() -> None:
    side = SIDES["cifar"]
    image = np.full((3, side, side), 0.4, "<f4")
    steps = msgspec.structs.replace(
        CIFAR, resize=None, crop=side, mean=(0.0,) * 3, mean_image=image.tobytes()
    )
    with pytest.raises(BackendError, match="not a mean image; pass --input float32-nchw"):
        lowered(take_uint8(folded("cifar"), steps), "cifar")

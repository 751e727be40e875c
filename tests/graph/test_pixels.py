"""The first convolution reads bytes that INT8 holds exactly, and the network computes what it did."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.network import Network
from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize
from rescompile.backends.cpu.lowering import lower
from rescompile.errors import GraphError
from rescompile.graph.export import export
from rescompile.graph.fold import fold
from rescompile.graph.half import half
from rescompile.graph.lint import lint
from rescompile.graph.pixels import can_be_exact, read_pixels, to_pixels
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.quantize import quantize
from rescompile.graph.reformats import reformats
from rescompile.graph.restore import restore
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.names import PIXEL_STEP, PIXELS
from rescompile.graph.shared.topology import block_outputs, quantized_tensors, reading_all_of_int8
from tests.graph.conftest import folded, images, network, run

NETWORKS = {"resnet18": IMAGENET, "resnet20-cifar": CIFAR}
QUANTIZED = f"{PIXELS}.quantize"


def normalized_by(mean: float, std: float) -> Preprocess:
    return msgspec.structs.replace(IMAGENET, mean=(mean,) * 3, std=(std,) * 3)


HALF = normalized_by(0.5, 0.5)
UNIT = normalized_by(0.0, 1.0)
LARGEST = normalized_by(1.0, 0.1)
CAFFE = normalized_by(0.44, 1 / 255)


def pixels_of(name: str) -> onnx.ModelProto:
    return read_pixels(folded(name), NETWORKS[name])


def in_int8(graph: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(
        graph, {tensor: PIXEL_STEP if tensor == PIXELS else 0.1 for tensor in quantized_tensors(graph)}
    )


def every_byte(size: int) -> NDArray[np.uint8]:
    """[1, size, size, 3]; all 256 in each channel, in another order for each."""
    planes = [np.roll(np.arange(size * size) % 256, 7 * shift).reshape(size, size) for shift in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)[None]


def held(model: onnx.ModelProto, x: NDArray[Any], pad: int) -> NDArray[np.int64]:
    """The integers [1, 3, H, W] of the first quantizer, without padding."""
    q = run(model, x, [QUANTIZED])[QUANTIZED].astype(np.int64)
    return q[:, :, pad:-pad, pad:-pad]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_fp32_network_computes_the_same_borders_included(name: str) -> None:
    before, after, x = folded(name), pixels_of(name), images(name)
    onnx.checker.check_model(after, full_check=True)
    expected, found = (run(model, x, ["conv1", "logits"]) for model in (before, after))
    for tensor in ("conv1", "logits"):
        assert np.abs(found[tensor] - expected[tensor]).max() <= 1e-4 * np.abs(expected[tensor]).max()


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 2, 3, 0), (2, 2, 2, 2)])
def test_every_padding_is_that_of_the_convolution(pads: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    constants = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("conv1.weight", (4, 3, 3, 5)), ("conv1.bias", (4,)))
    ]
    conv = helper.make_node(
        "Conv", ["input", "conv1.weight", "conv1.bias"], ["logits"], name="conv1", pads=pads, strides=[2, 1],
        kernel_shape=[3, 5],
    )  # fmt: skip
    tensors = [
        helper.make_tensor_value_info(name, 1, shape)
        for name, shape in (("input", ["N", 3, 9, 12]), ("logits", None))
    ]
    graph = helper.make_graph([conv], "g", tensors[:1], tensors[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    x = rng.normal(size=(2, 3, 9, 12)).astype(np.float32)
    found = run(read_pixels(model, IMAGENET), x)["logits"]
    assert np.allclose(found, run(model, x)["logits"], atol=1e-4)
    assert (f"{PIXELS}.pad" in {node.name for node in read_pixels(model, IMAGENET).graph.node}) == any(pads)


@pytest.mark.parametrize("preprocess", [IMAGENET, CIFAR, HALF, UNIT, LARGEST, CAFFE])
@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize("raw", [False, True])
def test_every_byte_is_held_exactly(preprocess: Preprocess, rest: str, raw: bool) -> None:
    graph = in_int8(read_pixels(folded("resnet20-cifar"), preprocess))
    graph = take_uint8(graph, preprocess) if raw else graph
    graph = half(graph) if rest == "float16" else graph
    pixels = every_byte(32)
    found = held(graph, pixels if raw else normalize(pixels, preprocess), pad=1)
    assert can_be_exact(preprocess)
    assert np.array_equal(found, pixels.transpose(0, 3, 1, 2).astype(int) - 128)


def test_a_border_is_the_byte_nearest_to_a_normalized_zero() -> None:
    graph = in_int8(pixels_of("resnet18"))
    q = run(graph, images("resnet18"), [QUANTIZED])[QUANTIZED].astype(int)
    assert q[0, :, 0, 0].tolist() == [round(255 * mean - 128) for mean in IMAGENET.mean]
    assert q.shape[2:] == (70, 70)


@pytest.mark.parametrize(
    "preprocess", [normalized_by(1e6, 0.2), normalized_by(-100.0, 1.0), normalized_by(0.5, 1e-9)]
)
def test_a_normalization_that_loses_the_byte_is_known(preprocess: Preprocess) -> None:
    assert not can_be_exact(preprocess)


def test_the_map_to_pixels_is_that_of_the_normalization() -> None:
    factor, offset = to_pixels(IMAGENET)
    x = normalize(np.full((1, 1, 1, 3), 200, np.uint8), IMAGENET)[0, :, 0, 0]
    assert factor * x + offset == pytest.approx((200 - 128) * PIXEL_STEP, abs=1e-6)


def test_pixels_belong_to_the_stem_and_use_all_of_int8() -> None:
    graph = pixels_of("resnet18")
    assert quantized_tensors(graph)[:2] == [PIXELS, "maxpool"]
    assert {block_of(node.name) for node in graph.graph.node if node.name.startswith(PIXELS)} == {"stem"}
    assert reading_all_of_int8(graph, ()) == ["conv1"]
    assert block_outputs(graph) == block_outputs(folded("resnet18"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("blocks", [(), ("stem",), ("layer1.0",), ("stem", "layer1.0")])
def test_blocks_in_floating_point_keep_the_contract(name: str, blocks: tuple[str, ...]) -> None:
    graph = pixels_of(name)
    mixed = restore(in_int8(graph), graph, blocks)
    adds = network(name)[0].residual_adds
    for rest_type, model in (("float32", mixed), ("float16", half(mixed))):
        assert not lint(model, precision="int8", rest_type=rest_type, residual_adds=adds, fp16_blocks=blocks)
    assert (QUANTIZED in {node.name for node in mixed.graph.node}) == ("stem" not in blocks)
    assert reformats(mixed) == {0: 1, 1: 1 if "stem" in blocks else 3, 2: 1}[len(blocks)]


def test_pytorch_executes_the_same_integers() -> None:
    graph, x = in_int8(pixels_of("resnet20-cifar")), normalize(every_byte(32), CIFAR)
    seen: dict[str, NDArray[Any]] = {}
    with torch.inference_mode():
        Network(graph).run(
            torch.from_numpy(x), lambda node, value: seen.setdefault(node.output, value.numpy()) is None
        )
    assert np.array_equal(seen[QUANTIZED], run(graph, x, [QUANTIZED])[QUANTIZED])


@pytest.mark.parametrize("narrow", [False, True])
def test_what_openvino_executes_gives_the_same_logits(narrow: bool) -> None:
    graph = in_int8(pixels_of("resnet20-cifar"))
    if narrow:
        entry = next(t for t in graph.graph.initializer if t.name == "conv1.weight.int8")
        entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) // 2, entry.name))
    x = normalize(every_byte(32), CIFAR)
    expected, found = run(graph, x)["logits"], run(lower(graph), x)["logits"]
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("damage", "reader"), [("twice", "again"), ("grouped", "conv1")])
def test_an_input_that_is_no_stem_is_refused(damage: str, reader: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(folded("resnet20-cifar"))
    conv = next(node for node in model.graph.node if node.name == "conv1")
    if damage == "grouped":
        next(field for field in conv.attribute if field.name == "group").i = 3
    else:
        model.graph.node.append(helper.make_node("Relu", ["input"], ["again"], name="again"))
        model.graph.output.append(helper.make_tensor_value_info("again", 1, None))
    with pytest.raises(GraphError, match=f"'input' cannot be read as pixels: '{reader}'"):
        read_pixels(model, CIFAR)


def coarse(model: onnx.ModelProto) -> None:
    entry = next(tensor for tensor in model.graph.initializer if tensor.name == f"{PIXELS}.scale")
    entry.CopyFrom(numpy_helper.from_array(np.array(0.02, np.float32), entry.name))


def padded(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.name == "conv1")
    next(field for field in conv.attribute if field.name == "pads").ints[:] = [1] * 4


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (coarse, "holds multiples of 0.015625, but 'pixels.quantize' has another"),
        (padded, "'conv1' pads 'pixels'"),
    ],
)
def test_lint_finds_what_makes_pixels_inexact(mutate: Any, message: str) -> None:
    model = in_int8(pixels_of("resnet20-cifar"))
    mutate(model)
    (violation,) = lint(model, precision="int8", rest_type="float32", residual_adds=9)
    assert violation.rule == "exact-pixels"
    assert message in str(violation)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_sizes_are_read_as_pixels(channels: int) -> None:
    model = copy.deepcopy(network("resnet20-cifar")[1])
    model.conv1 = torch.nn.Conv2d(channels, 16, 3, padding=1, bias=False)
    graph = fold(export(model, image_size=(24, 17)))
    steps = msgspec.structs.replace(
        CIFAR,
        resize=None,
        crop=(24, 17),
        color="GRAY" if channels == 1 else "RGBA",
        mean=(0.1, 0.2, 0.3, 0.4)[:channels],
        std=(0.25, 0.5, 0.3, 0.2)[:channels],
    )
    assert can_be_exact(steps)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 17, channels), np.uint8)
    expected = run(graph, normalize(pixels, steps))["logits"]
    exact = read_pixels(graph, steps)
    assert np.allclose(run(exact, normalize(pixels, steps))["logits"], expected, rtol=1e-4, atol=1e-4)
    for made in (graph, exact):
        assert np.allclose(run(take_uint8(made, steps), pixels)["logits"], expected, rtol=1e-4, atol=1e-4)


def test_a_mean_image_is_subtracted_in_the_graph_and_never_exact() -> None:
    graph = folded("resnet20-cifar")
    image = np.random.default_rng(0).uniform(0, 1, (3, 32, 32)).astype("<f4")
    steps = msgspec.structs.replace(CIFAR, mean=(0.0,) * 3, mean_image=image.tobytes())
    assert not can_be_exact(steps)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = run(graph, normalize(pixels, steps))["logits"]
    assert np.allclose(run(take_uint8(graph, steps), pixels)["logits"], expected, rtol=1e-4, atol=1e-4)

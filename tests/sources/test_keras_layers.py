"""Each Keras layer alone, against torch or NumPy, and the forms of each that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rescompile.manifest import CheckpointRef
from rescompile.sources.graph_writer import INPUT, GraphWriter
from rescompile.sources.keras_example import example_layers
from rescompile.sources.keras_layers import LAYERS, Layer
from rescompile.sources.network import SourceNetwork
from tests.sources.zoo import run

RNG = np.random.default_rng(0)
SHAPE = (4, 6, 5)


def random(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def answer(
    kind: str, config: dict[str, Any], weights: list[NDArray[Any]], x: NDArray[Any], shape: Any
) -> NDArray[Any]:
    """The layer's answer to ``x``, which is an image or a row."""
    writer, y = GraphWriter(SHAPE), INPUT
    if len(shape) == 1:
        y = writer.flatten(writer.global_pool(INPUT, "pool", "GlobalAveragePool"), "row")
    inputs = [y, y] if kind in ("Add", "Subtract", "Multiply", "Maximum", "Average", "Concatenate") else [y]
    y = LAYERS[kind](Layer(writer, config, weights, inputs, "it"))
    return run(
        SourceNetwork(
            graph=writer.model([y], Path("x.h5")), name="n", checkpoint=CheckpointRef("0" * 64, "")
        ),
        x,
    )


def rows(x: Tensor) -> Tensor:
    return x.mean((2, 3))


KERNEL, BIAS, DEEP = random(3, 3, 4, 2), random(2), random(3, 3, 4, 2)
POINT, NORM, DENSE = (
    random(1, 1, 8, 3),
    [random(4), random(4), random(4), np.abs(random(4)) + 1],
    random(4, 3),
)


def conv(x: Tensor, kernel: NDArray[Any], bias: Any = None, **options: Any) -> Tensor:
    weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
    return F.conv2d(x, weight, None if bias is None else torch.from_numpy(bias), **options)


def deep(x: Tensor, bias: Any = None) -> Tensor:
    weight = torch.from_numpy(DEEP.transpose(2, 3, 0, 1).reshape(8, 1, 3, 3).copy())
    return F.conv2d(x, weight, bias, padding=1, groups=4)


def normalized(x: Tensor, scale: Any, shift: Any, epsilon: float = 1e-3) -> Tensor:
    mean, variance = (torch.from_numpy(part) for part in NORM[2:])
    parts = [None if part is None else torch.from_numpy(part) for part in (scale, shift)]
    return F.batch_norm(x, mean, variance, *parts, eps=epsilon)


Case = tuple[str, dict[str, Any], list[NDArray[Any]], Callable[[Tensor], Tensor]]
SAME, VALID = {"padding": "same"}, {"padding": "valid"}
THREE = {"kernel_size": [3, 3]}
CASES: dict[str, Case] = {
    "convolution": (
        "Conv2D",
        {**VALID, **THREE, "strides": 2},
        [KERNEL, BIAS],
        lambda x: conv(x, KERNEL, BIAS, stride=2),
    ),
    "spread": (
        "Conv2D",
        {**SAME, **THREE, "dilation_rate": [2, 2]},
        [KERNEL],
        lambda x: conv(x, KERNEL, padding=2, dilation=2),
    ),
    "with activation": (
        "Conv2D",
        {**SAME, **THREE, "activation": "relu"},
        [KERNEL],
        lambda x: conv(x, KERNEL, padding=1).relu(),
    ),
    "depthwise": ("DepthwiseConv2D", {**SAME, **THREE}, [DEEP], deep),
    "depthwise with bias": (
        "DepthwiseConv2D",
        {**SAME, **THREE},
        [DEEP, np.ones(8, np.float32)],
        lambda x: deep(x) + 1,
    ),
    "separable": ("SeparableConv2D", {**SAME, **THREE}, [DEEP, POINT], lambda x: conv(deep(x), POINT)),
    "separable with bias": (
        "SeparableConv2D",
        {**SAME, **THREE},
        [DEEP, POINT, np.ones(3, np.float32)],
        lambda x: conv(deep(x), POINT) + 1,
    ),
    "norm": ("BatchNormalization", {"epsilon": 0.01}, NORM, lambda x: normalized(x, *NORM[:2], 0.01)),
    "norm without scale": (
        "BatchNormalization",
        {"scale": False, "axis": [3]},
        NORM[1:],
        lambda x: normalized(x, None, NORM[1]),
    ),
    "norm alone": (
        "BatchNormalization",
        {"scale": False, "center": False},
        NORM[2:],
        lambda x: normalized(x, None, None),
    ),
    "dense on images": (
        "Dense",
        {},
        [DENSE],
        lambda x: torch.einsum("nihw,io->nohw", x, torch.from_numpy(DENSE)),
    ),
    "dense": (
        "Dense",
        {"activation": "tanh"},
        [DENSE, BIAS[[0, 1, 1]]],
        lambda x: (rows(x) @ torch.from_numpy(DENSE) + torch.from_numpy(BIAS[[0, 1, 1]])).tanh(),
    ),
    "swish": ("Activation", {"activation": "swish"}, [], F.silu),
    "relu of six": ("Activation", {"activation": "relu6"}, [], F.relu6),
    "activation of Keras 3": (
        "Activation",
        {"activation": {"class_name": "function", "config": "elu"}},
        [],
        F.elu,
    ),
    "linear": ("Activation", {"activation": "linear"}, [], lambda x: x),
    "relu": ("ReLU", {}, [], F.relu),
    "relu with slope": ("ReLU", {"negative_slope": [0.1]}, [], lambda x: F.leaky_relu(x, 0.1)),
    "leaky": ("LeakyReLU", {}, [], lambda x: F.leaky_relu(x, 0.3)),
    "leaky by its old name": ("LeakyReLU", {"alpha": 0.2}, [], lambda x: F.leaky_relu(x, 0.2)),
    "softmax": ("Softmax", {"axis": -1}, [], lambda x: x.softmax(1)),
    "sum": ("Add", {}, [], lambda x: x + x),
    "difference": ("Subtract", {}, [], lambda x: x - x),
    "product": ("Multiply", {}, [], lambda x: x * x),
    "largest": ("Maximum", {}, [], lambda x: x),
    "mean": ("Average", {}, [], lambda x: x),
    "joined": ("Concatenate", {"axis": 3}, [], lambda x: torch.cat([x, x], 1)),
    "pool": ("MaxPooling2D", {**VALID, "pool_size": 2, "strides": None}, [], lambda x: F.max_pool2d(x, 2)),
    "pool with strides": (
        "AveragePooling2D",
        {**VALID, "pool_size": [2, 2], "strides": 1},
        [],
        lambda x: F.avg_pool2d(x, 2, 1),
    ),
    "global pool": ("GlobalMaxPooling2D", {}, [], lambda x: x.amax((2, 3))),
    "global pool that keeps": (
        "GlobalAveragePooling2D",
        {"keepdims": True},
        [],
        lambda x: x.mean((2, 3), keepdim=True),
    ),
    "flat": ("Flatten", {}, [], lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    "flat row": ("Flatten", {}, [], rows),
    "row to image": ("Reshape", {"target_shape": [1, 1, 4]}, [], lambda x: rows(x)[:, :, None, None]),
    "row to row": ("Reshape", {"target_shape": [-1]}, [], rows),
    "padding": ("ZeroPadding2D", {"padding": 1}, [], lambda x: F.pad(x, (1, 1, 1, 1))),
    "padding of sides": ("ZeroPadding2D", {"padding": [[1, 0], 2]}, [], lambda x: F.pad(x, (2, 2, 1, 0))),
    "rescaling": (
        "Rescaling",
        {"scale": 2.0, "offset": [1.0, 2.0, 3.0, 4.0]},
        [],
        lambda x: 2 * x + torch.arange(1.0, 5.0)[:, None, None],
    ),
    "normalization": (
        "Normalization",
        {"axis": [-1], "mean": [1.0] * 4, "variance": [4.0] * 4},
        [],
        lambda x: (x - 1) / 2,
    ),
    "training only": ("Dropout", {}, [], lambda x: x),
}
ON_ROWS = {"dense", "flat row", "row to image", "row to row"}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_answers_as_keras_says(name: str) -> None:
    kind, config, weights, expected = CASES[name]
    x = random(2, *SHAPE)
    found = answer(kind, config, weights, x, SHAPE[:1] if name in ON_ROWS else SHAPE)
    np.testing.assert_allclose(found, expected(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "config", "weights", "said"),
    [
        ("Conv2D", {"padding": "causal", **THREE}, [KERNEL], "its padding is causal"),
        ("Conv2D", {**SAME, **THREE}, [], "0 arrays of weights"),
        ("Conv2D", {"data_format": "channels_first"}, [KERNEL], "channels_first"),
        ("BatchNormalization", {"axis": 1}, NORM, "normalizes axis 1"),
        ("Activation", {"activation": {"class_name": "Mine"}}, [], "its activation is"),
        ("ReLU", {"threshold": 0.5}, [], "threshold"),
        ("ReLU", {"negative_slope": 0.1, "max_value": 6.0}, [], "slope and a largest"),
        ("Reshape", {"target_shape": [2, 2]}, [], "it makes"),
        ("Concatenate", {"axis": 1}, [], "joins axis 1"),
        ("Softmax", {"axis": 1}, [], "its axis is 1"),
        ("Normalization", {"axis": 1}, [], "does not normalize each channel"),
    ],
)
def test_a_form_that_is_not_known_is_refused(
    kind: str, config: dict[str, Any], weights: list[NDArray[Any]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        answer(kind, config, weights, random(1, *SHAPE), SHAPE)


def example_shapes(width: int = 2, blocks: int = 1) -> dict[str, list[tuple[int, ...]]]:
    """The weights' shapes of Keras's example with ``blocks`` blocks in each of three stages."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    counts = {"conv2d": 0, "batch_normalization": 0}

    def add(kind: str, *found: tuple[int, ...]) -> None:
        number = counts[kind]
        counts[kind] = number + 1
        shapes[f"{kind}_{number}" if number else kind] = list(found)

    def conv(kernel: int, before: int, after: int) -> None:
        add("conv2d", (kernel, kernel, before, after), (after,))

    def norm(channels: int) -> None:
        add("batch_normalization", *[(channels,)] * 4)

    conv(3, 3, width)
    norm(width)
    before = width
    for stage in range(3):
        for block in range(blocks):
            after = width << stage
            conv(3, before, after)
            norm(after)
            conv(3, after, after)
            norm(after)
            if stage and not block:
                conv(1, before, after)
            before = after
    shapes["dense"] = [(before, 5), (5,)]
    return shapes


def test_the_example_is_known_by_its_shapes_alone() -> None:
    layers = example_layers(example_shapes())
    assert layers is not None
    assert [layer["class_name"] for layer in layers].count("Add") == 3
    assert example_layers(example_shapes(blocks=2)) is not None


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv2d", [(3, 3, 3, 4), (4,)]),
        ("dense", [(7, 5), (5,)]),
        ("batch_normalization_3", [(3,)] * 4),
        ("conv2d_3", [(3, 3, 2, 3), (3,)]),
        ("conv2d_9", [(1, 1, 1, 1)]),
        ("mine", [(1,)]),
    ],
)
def test_other_shapes_are_not_the_example(name: str, shape: list[tuple[int, ...]]) -> None:
    assert example_layers({**example_shapes(), name: shape}) is None

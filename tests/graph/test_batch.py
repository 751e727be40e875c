"""Networks that compute with the number of images are read so that they take any number."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from rescompile.backends.onnxruntime import reference_session
from rescompile.building.fidelity import check_against_file
from rescompile.errors import CheckpointError, GraphError
from rescompile.graph.fold import fold
from rescompile.graph.simplify import simplify
from rescompile.graph.structure import structure
from tests.graph.test_simplify import read, small


class Transformer(nn.Module):
    """A small vision transformer: patches, a class token before and a register behind them, attention, a classifier."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches, self.heads = nn.Conv2d(3, width, 4, 4), heads
        self.token, self.register_, self.places = (
            nn.Parameter(torch.randn(1, count, width)) for count in (1, 1, 18)
        )
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, 10)

    def attention(self, x: Tensor) -> Tensor:
        """Attention as PyTorch computes it: of [places, images, width], with one matrix for each head of each image."""
        length, count, width = x.shape
        parts = self.inner(x).reshape(length, count * self.heads, 3 * width // self.heads).transpose(0, 1)
        query, key, value = parts.chunk(3, -1)
        mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
        return self.outer(mixed.transpose(0, 1).reshape(length * count, width)).reshape(length, count, width)

    def forward(self, x: Tensor) -> Tensor:
        found = self.patches(x).flatten(2).transpose(1, 2)
        first, last = (each.expand(x.shape[0], -1, -1) for each in (self.token, self.register_))
        found = torch.cat([first, found, last], 1) + self.places
        found = found + self.attention(self.before(found).transpose(0, 1)).transpose(0, 1)
        return self.head((found + self.body(self.after(found)))[:, 0])


def exported(module: nn.Module, *, free: bool = True) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.zeros(2, 3, 16, 16),), file, dynamo=False, input_names=["image"],
            dynamic_axes={"image": {0: "N"}} if free else None,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def test_a_transformer_answers_each_of_any_number_of_images() -> None:
    torch.manual_seed(0)
    module = Transformer()
    model = exported(module)
    found = simplify(model)
    graph, blocks = structure(fold(found.graph))
    check_against_file(graph, model, found.intake, blocks.origins, found.range)
    images = torch.randn(5, 3, 16, 16)
    for count in (1, 2, 5):
        answers = reference_session(graph, optimize=False)(images[:count].numpy())
        with torch.inference_mode():
            np.testing.assert_allclose(answers, module(images[:count]).numpy(), rtol=1e-4, atol=1e-5)


def test_a_file_for_one_number_of_images_is_refused_with_its_node() -> None:
    with pytest.raises(
        GraphError,
        match=r"the file is made for one number of images, because of '.+' \(Reshape\): export it with",
    ):
        read(exported(Transformer(), free=False))


def test_a_file_that_promises_any_number_of_images_and_takes_two_is_refused_so() -> None:
    model = small([onnx.helper.make_node("Concat", ["x", "more"], ["joined"], axis=1)], first="joined",
                  more=np.zeros((2, 1, 8, 8), np.float32), w1=np.ones((8, 4, 3, 3), np.float32))  # fmt: skip
    with pytest.raises(
        GraphError, match=r"the file is made for one number of images, because of '.+' \(Concat\)"
    ):
        read(model)


def test_a_graph_of_ours_that_takes_one_image_is_not_blamed_on_the_file() -> None:
    """Whole numbers are joined to the image, which no rewrite looks for."""
    node = onnx.helper.make_node
    body = [
        node("Shape", ["x"], ["sizes"], start=0, end=1),
        node("Concat", ["sizes", "row"], ["to"], axis=0),
        node("Expand", ["one", "to"], ["rows"]),
        node("Cast", ["x"], ["whole"], to=onnx.TensorProto.INT64),
        node("Concat", ["rows", "whole"], ["joined"], axis=2),
        node("Cast", ["joined"], ["again"], to=onnx.TensorProto.FLOAT),
    ]
    numbers = {"row": [3, 1, 8], "one": 1}
    constants = {name: np.array(value, np.int64) for name, value in numbers.items()}
    with pytest.raises(
        GraphError, match=r"takes any number of images, but rescompile's graph of it does not"
    ):
        read(small(body, first="again", **constants))


def test_values_gathered_in_their_order_are_a_reshape() -> None:
    """PyTorch exports a pool of a channels-last tensor so."""
    node = onnx.helper.make_node
    body = [
        node("Reshape", ["x", "all"], ["flat"]),
        node("Shape", ["flat"], ["count"]),
        node("Squeeze", ["count"], ["end"]),
        node("Range", ["zero", "end", "step"], ["order"]),
        node("Reshape", ["order", "sizes"], ["places"]),
        node("Gather", ["flat", "places"], ["again"]),
    ]
    numbers = {"all": [-1], "sizes": [-1, 3, 8, 8], "zero": 0, "step": 1}
    constants = {name: np.array(value, np.int64) for name, value in numbers.items()}
    assert "Gather" not in read(small(body, first="again", **constants))[2]


def test_a_network_that_answers_only_zeros_is_refused() -> None:
    model = small([])
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((5, 8), np.float32), "w3"))
    with pytest.raises(CheckpointError, match="answers only zeros, whatever the image"):
        read(model)

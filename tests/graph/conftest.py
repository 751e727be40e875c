"""Small networks of every family and their graphs, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from rescompile.graph.export import export
from rescompile.graph.fold import fold
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from rescompile.models.random_weights import fill_randomly, random_model
from rescompile.models.registry import find, with_options
from rescompile.models.resnet import BasicBlock, Bottleneck, ResNet
from rescompile.models.specification import ModelSpec

SIZES = {"imagenet": 64, "cifar": 32}
"""Input sizes of the tests; ImageNet networks take any multiple of 32."""
WIDTHS = (16, 32, 64, 128)
"""A quarter of the ImageNet networks' own: the graphs differ in nothing else, and take a tenth of the time."""


@cache
def network(name: str, shortcut: str | None = None) -> tuple[ModelSpec, Any]:
    spec = with_options(find(depth=None, name=name), shortcut=shortcut)  # type: ignore[arg-type]
    if spec.family == "cifar":
        return spec, random_model(spec, 10, seed=1)[0]
    model = ResNet(
        BasicBlock if spec.block == "basic" else Bottleneck, spec.stages, classes=10, widths=WIDTHS
    ).eval()
    fill_randomly(model, seed=1)
    return spec, model


@cache
def exported(name: str, shortcut: str | None = None) -> onnx.ModelProto:
    spec, model = network(name, shortcut)
    return export(model, image_size=SIZES[spec.family])


@cache
def folded(name: str, shortcut: str | None = None) -> onnx.ModelProto:
    return fold(exported(name, shortcut))


@cache
def int8(name: str, shortcut: str | None = None) -> onnx.ModelProto:
    """Quantized with the ranges of a random input, so that its numbers mean something."""
    graph = folded(name, shortcut)
    tensors = quantized_tensors(graph)
    seen = run(graph, images(name), outputs=tensors)
    return quantize(graph, {tensor: float(np.abs(seen[tensor]).max()) / 127 for tensor in tensors})


@cache
def with_zero_points(
    name: str, part: float = 0.9, widest: int = 0, shortcut: str | None = None
) -> onnx.ModelProto:
    """Quantized with ``part`` of the ranges of a random input; where it may be, with 255 steps between 0 and there."""
    graph = folded(name, shortcut)
    tensors, full = quantized_tensors(graph), full_range_tensors(graph, widest=widest)
    seen = run(graph, images(name), outputs=tensors)
    steps = {tensor: 255 if tensor in full else 127 for tensor in tensors}
    scales = {tensor: part * float(np.abs(seen[tensor]).max()) / steps[tensor] for tensor in tensors}
    return quantize(graph, scales, full_range=full)


def images(name: str, count: int = 2) -> NDArray[np.float32]:
    size = SIZES["cifar" if "cifar" in name else "imagenet"]
    return np.random.default_rng(3).standard_normal((count, 3, size, size), dtype=np.float32)


def run(model: onnx.ModelProto, x: NDArray[Any], outputs: list[str] | None = None) -> dict[str, NDArray[Any]]:
    """The graph's own semantics: ONNX Runtime without optimizations; also tensors in between."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = outputs or [model.graph.output[0].name]
    known = {value.name for value in model.graph.output}
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in known and name != "input"
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run([name for name in names if name != "input"], {"input": x})
    return {**dict(zip([n for n in names if n != "input"], found, strict=True)), "input": x}


@pytest.fixture
def edit() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """A copy that a test may damage."""

    def copy(model: onnx.ModelProto) -> onnx.ModelProto:
        mine = onnx.ModelProto()
        mine.CopyFrom(model)
        return mine

    return copy

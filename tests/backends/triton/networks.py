"""Small networks of every kind that a plan distinguishes, as deployable graphs with ranges of their own."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.preprocess import CIFAR, Preprocess, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.triton.lowering.chains import with_chains
from rescompile.backends.triton.lowering.network import Network, lower
from rescompile.graph.export import export
from rescompile.graph.fold import fold
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.half import half
from rescompile.graph.pixels import read_pixels
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.names import PIXEL_STEP, PIXELS
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from rescompile.manifest import Precision
from rescompile.models.cifar import CIFAR_STEM
from rescompile.models.form import BlockForm
from rescompile.models.resnet import IMAGENET_STEM, BasicBlock, Bottleneck, ResNet

CLASSES = 10
FULL_RANGE = ", full range"
SIDES = {
    "cifar": 8, "basic": 16, "bottleneck": 16, "stride on 1x1": 16,
    "cifar, full range": 8, "basic, full range": 16, "bottleneck, full range": 16, "stride on 1x1, full range": 16,
}  # fmt: skip
"""Networks by name, and the side of their images. Full range is about INT8: zero is stored as -128 where it may be, and
the stem reads pixels."""


def _network(name: str) -> ResNet:
    name = name.removesuffix(FULL_RANGE)
    if name == "cifar":  # option A shortcuts, no pool
        form = BlockForm(shortcut="A")
        return ResNet(BasicBlock, (1, 1), form, widths=(16, 32), stem=CIFAR_STEM, classes=CLASSES)
    if name == "basic":  # 7x7 stem with pool, projections
        return ResNet(BasicBlock, (1, 1), widths=(16, 32), stem=IMAGENET_STEM, classes=CLASSES)
    # chains of width 32 in every precision that has them, within a stage and from one to the next
    stride_on: Any = "1x1" if name == "stride on 1x1" else "3x3"
    sizes, widths = ((2, 1), (32, 32)) if name == "bottleneck" else ((1, 1), (32, 32))
    form = BlockForm(stride_on=stride_on)
    return ResNet(Bottleneck, sizes, form, widths=widths, stem=IMAGENET_STEM, classes=CLASSES)


@cache
def folded(name: str) -> onnx.ModelProto:
    """The fp32 graph, from batch norms whose statistics differ by channel."""
    torch.manual_seed(5)
    model = _network(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return fold(export(model.eval(), image_size=SIDES[name]))


@cache
def deployable(name: str, precision: Precision, *, pixels: bool = False) -> onnx.ModelProto:
    """The graph that ``rescompile.building.deployable`` makes for this backend: fp32 around INT8."""
    graph = folded(name)
    if precision == "int8":
        tensors = quantized_tensors(graph)
        wide = full_range_tensors(graph, widest=sys.maxsize) if name.endswith(FULL_RANGE) else []
        made = [tensor for tensor in tensors if tensor != "input"]
        seen = reference_session(graph.SerializeToString(), optimize=False, outputs=made).tensors(
            floats(name, 8)
        )
        seen["input"] = floats(name, 8)
        # a little less than the range, so that some values saturate
        scales = {
            tensor: 0.8 * float(np.abs(seen[tensor]).max()) / (255 if tensor in wide else 127)
            for tensor in tensors
        }
        if name.endswith(FULL_RANGE):
            graph, scales[PIXELS] = read_pixels(graph, _preprocess(name)), PIXEL_STEP
        graph = fold_zero_points(quantize(graph, scales, full_range=wide))
    if pixels:
        graph = take_uint8(graph, _preprocess(name))
    return half(graph) if precision == "fp16" else graph


@cache
def network(name: str, precision: Precision, *, pixels: bool = False) -> Network:
    """Lowered, in chains where they fit."""
    side = SIDES[name]
    return with_chains(lower(deployable(name, precision, pixels=pixels), (side, side)))


def images(name: str, count: int, *, pixels: bool = False) -> NDArray[Any]:
    """Seeded images as the network takes them."""
    if not pixels:
        return floats(name, count)
    side = SIDES[name]
    return np.random.default_rng(2).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _preprocess(name: str) -> Preprocess:
    return msgspec.structs.replace(CIFAR, resize=None, crop=SIDES[name])


def floats(name: str, count: int) -> NDArray[np.float32]:
    """Smooth noise [count, 3, side, side]; pixels, normalized, where the stem reads those."""
    side = SIDES[name]
    if name.endswith(FULL_RANGE):
        return normalize(images(name, count, pixels=True), _preprocess(name))
    noise = np.random.default_rng(1).standard_normal((count, 3, side, side), dtype=np.float32)
    return noise + np.roll(noise, 1, axis=2) + np.roll(noise, 1, axis=3)

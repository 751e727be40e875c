"""Exact pixels: the first convolution reads the bytes of the image, which INT8 holds without rounding.

A photograph is decoded and resized to bytes u in 0..255 and then normalized: x = (u / 255 - mean) / std. Because std
differs by channel, no single scale fits the steps of x in all three channels. So the deployable graph undoes the
normalization in front of its first quantizer:

    input ── Pad ── Mul ── Add ── pixels ── Q ── DQ ── conv1 without padding

``pixels`` holds (u - 128) * PIXEL_STEP, and its quantizer has that scale: the integers are u - 128, in [-128, 127], and
nothing is rounded. The step 2**-6 is close to that of x, 1 / (255 std), so the weights keep their magnitude and their
scales stay within FP16. The padding stands in front of Mul and Add, where zero is the network's own zero; behind the
Add a zero would be a pixel of 128.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from calibration.preprocess import Preprocess, normalize
from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import consumers
from rescompile.graph.shared.names import PIXEL_STEP, PIXELS, PIXELS_MULTIPLY, PIXELS_PAD

_NEAR = 0.5
"""In steps: a value closer than this to an integer is rounded to that integer."""


def to_pixels(preprocess: Preprocess) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Factor [C] and offset [C] of pixels = factor * x + offset, where x is the network's normalized input."""
    mean, std = (np.asarray(values, np.float64) for values in (preprocess.mean, preprocess.std))
    return 255 * std * PIXEL_STEP, (255 * mean - 128) * PIXEL_STEP


def can_be_exact(preprocess: Preprocess) -> bool:
    """Whether every byte can be recovered from the normalized input, in FP32 and in FP16.

    It can for every mean in [0, 1]. With a mean far outside, the input's type cannot tell the bytes apart. A mean
    image differs by pixel, which no convolution can take into its weights and bias.
    """
    if preprocess.mean_image:
        return False
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(preprocess.channels, axis=3)
    factor, offset = (values.reshape(1, -1, 1, 1) for values in to_pixels(preprocess))
    expected = every_byte.transpose(0, 3, 1, 2).astype(np.float64) - 128
    with np.errstate(over="ignore", invalid="ignore"):
        x = normalize(every_byte, preprocess)
        steps = [
            (x.astype(kind) * factor.astype(kind) + offset.astype(kind)).astype(np.float64) / PIXEL_STEP
            for kind in (np.float32, np.float16)
        ]
    return all(bool((np.abs(found - expected) < _NEAR).all()) for found in steps)


def reason_against(model: onnx.ModelProto, preprocess: Preprocess) -> str | None:
    """Why the folded fp32 ``model`` cannot read pixels without rounding; None where it can."""
    if preprocess.mean_image:
        return "the mean image differs by pixel"
    if not can_be_exact(preprocess):
        return "the normalization is too large for the input's type to tell the bytes apart"
    return _reason_against_readers(consumers(read(model).inputs[0]))


def _reason_against_readers(readers: list[gs.Node]) -> str | None:
    for node in readers:
        if node.op != "Conv" or len(node.inputs[0].shape) != 4:
            return f"'{node.name}' ({node.op}) reads the image"
        if node.attrs.get("group", 1) != 1:
            return f"'{node.name}', which reads the image, is grouped"
        if len(node.inputs) != 3 or not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
            return f"'{node.name}', which reads the image, computes its weights or has no bias"
        if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return f"'{node.name}', which reads the image, pads by auto_pad"
    pads = {tuple(node.attrs.get("pads", (0, 0, 0, 0))) for node in readers}
    return None if len(pads) == 1 else "convolutions read the image with different padding"


def read_pixels(model: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """Folded fp32 ``model`` with ``pixels`` in front of its first convolutions; it computes the same.

    Raises:
        GraphError: the input has readers that cannot, as ``reason_against`` says.
    """
    graph = read(model)
    image = graph.inputs[0]
    readers = consumers(image)
    if reason := _reason_against_readers(readers):
        raise GraphError(f"'{image.name}' cannot be read as pixels: {reason}")
    factor, offset = to_pixels(preprocess)
    padded = _pad(graph, readers, image)
    scaled, pixels = (gs.Variable(name, np.float32, padded.shape) for name in (PIXELS_MULTIPLY, PIXELS))
    graph.nodes += [
        gs.Node("Mul", scaled.name, {}, [padded, _planes(f"{PIXELS}.factor", factor)], [scaled]),
        gs.Node("Add", pixels.name, {}, [scaled, _planes(f"{PIXELS}.offset", offset)], [pixels]),
    ]
    for conv in readers:
        weight, bias = (constant.values.astype(np.float64) for constant in conv.inputs[1:3])
        weight = weight / factor[:, None, None]
        conv.inputs = [
            pixels,
            gs.Constant(conv.inputs[1].name, weight.astype(np.float32)),
            gs.Constant(conv.inputs[2].name, (bias - weight.sum(axis=(2, 3)) @ offset).astype(np.float32)),
        ]
    return write(graph)


def _pad(graph: gs.Graph, readers: list[gs.Node], image: gs.Variable) -> gs.Variable:
    """``image`` with the zeros around it that ``readers`` padded it with so far; they pad no longer."""
    top, left, bottom, right = pads = readers[0].attrs.get("pads", [0, 0, 0, 0])
    if not any(pads):
        return image
    shape = list(image.shape)
    for axis, more in ((2, top + bottom), (3, left + right)):
        shape[axis] = shape[axis] + more if isinstance(shape[axis], int) else None
    padded = gs.Variable(PIXELS_PAD, image.dtype, shape)
    amounts = gs.Constant(f"{PIXELS_PAD}.amounts", np.array([0, 0, top, left, 0, 0, bottom, right]))
    graph.nodes.append(gs.Node("Pad", padded.name, {}, [image, amounts], [padded]))
    for conv in readers:
        conv.attrs["pads"] = [0, 0, 0, 0]
    return padded


def _planes(name: str, values: NDArray[np.float64]) -> gs.Constant:
    """``values`` [C] as a constant [1, C, 1, 1]."""
    return gs.Constant(name, values.astype(np.float32).reshape(1, -1, 1, 1))

"""Preprocessing inside the engine: uint8 NHWC pixels in; the graph normalizes them and changes the layout.

    x = (pixel / 255 - mean[c]) / std[c] = pixel * a[c] + b[c],   a = 1 / (255 std),  b = -mean / std

A mean image is subtracted in the same way, and ``b`` then has the size of the image.

It stays a multiply and an add in front of the stem: folding ``b`` into the convolution's bias would be wrong at
the border, where the padding is zero after normalization and not before it.

A graph with exact pixels (``graph.pixels``) undoes the normalization by a multiply of its own, behind its padding.
Padded zeros stay zeros there, so both multiplies become one in front of the padding. Its factor is PIXEL_STEP, a power
of two, which rounds nothing in any type.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from calibration.preprocess import Preprocess
from rescompile.graph.shared.editing import read, reconnect, write
from rescompile.graph.shared.names import PIXEL_STEP, PIXELS_MULTIPLY


def take_uint8(model: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """``model`` with input [N, H, W, C] uint8 (in ``preprocess.color`` order) instead of [N, C, H, W] float32."""
    graph = read(model)
    x = graph.inputs[0]
    planes = x.shape
    batch, channels, height, width = planes
    std = np.asarray(preprocess.std, np.float64).reshape(1, -1, 1, 1)
    mean = np.asarray(preprocess.mean, np.float64).reshape(1, -1, 1, 1)
    if preprocess.mean_image:
        mean = preprocess.subtracted().astype(np.float64)[None]
    undone = 255.0 * std * PIXEL_STEP if _remove_multiply(graph) else np.ones_like(std)
    factor = gs.Constant("preprocess.factor", (undone / (255.0 * std)).astype(np.float32))
    offset = gs.Constant("preprocess.offset", (-mean / std * undone).astype(np.float32))
    pixels = gs.Variable(x.name, np.uint8, [batch, height, width, channels])
    # the network's own tensor needs another name now that the pixels have taken the input's
    x.name = "preprocess"
    numbers = gs.Variable("preprocess.cast", np.float32, pixels.shape)
    planar = gs.Variable("preprocess.transpose", np.float32, planes)
    scaled = gs.Variable("preprocess.scale", np.float32, planes)
    graph.nodes += [
        gs.Node("Cast", numbers.name, {"to": onnx.TensorProto.FLOAT}, [pixels], [numbers]),
        gs.Node("Transpose", planar.name, {"perm": [0, 3, 1, 2]}, [numbers], [planar]),
        gs.Node("Mul", scaled.name, {}, [planar, factor], [scaled]),
        gs.Node("Add", "preprocess", {}, [scaled, offset], [x]),
    ]
    graph.inputs = [pixels]
    return write(graph)


def _remove_multiply(graph: gs.Graph) -> bool:
    """Remove the multiply by which ``graph`` undoes the normalization; False where there is none."""
    multiply = next((node for node in graph.nodes if node.name == PIXELS_MULTIPLY), None)
    if multiply is None:
        return False
    padded, (scaled,) = multiply.inputs[0], multiply.outputs
    reconnect(scaled.outputs, scaled, padded)
    multiply.outputs.clear()
    return True

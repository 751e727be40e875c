"""Writes an OpenVINO graph that infers in f32 by itself, for a server that cannot set the precision.

Triton Inference Server does not pass an inference precision to OpenVINO (its backend knows ``HINT_BF16: YES`` alone,
and OpenVINO ignores a precision in the graph's ``runtime_options``), so CPUs with bfloat16 would round float layers to
it. OpenVINO does not round layers that the graph marks as ``precise``. Its passes replace some layers by new ones
without the mark, so these layers are written in forms that stay:

* a float classifier becomes a 1x1 convolution, because a MatMul becomes a fully connected layer;
* a clip is one Clamp; pools, paddings, softmaxes and resizes are of the operator set that the CPU plugin runs, because
  others are converted to these;
* reshapes in a row are one Reshape, because OpenVINO would make a new one of them;
* a leaky ReLU is the sum of its two halves, because it would be fused into a convolution of another precision, and the
  graph would not compile;
* the flattening behind the global pool is done after quantization, where the numbers are integers;
* an INT8 graph hides the batch size, because with a known one residual adds are fused into new layers.

Checked with OpenVINO 2025.4.1 and 2026.4.1 on a CPU with AMX: answers equal the engine's, and for INT8 to the bit. With
2024.3, float graphs infer in f32 but INT8 graphs still round some layers. With 2026.4.1, INT8 graphs round where a
quantized tensor is also read by float layers, such as the gate of a squeeze-and-excitation block: OpenVINO makes new
layers there. ``bfloat16_check`` measures what is left.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

_DEQUANTIZING = {"Convert", "Subtract", "Multiply"}
_QUANTIZING = _DEQUANTIZING | {"FakeQuantize", "Maximum", "Minimum"}
_RESHAPING = {"Reshape", "Squeeze", "Unsqueeze"}
_UNMARKED = {"Const", "Parameter", "Result"}


def write_precise(model: Any, target: Path) -> None:
    """Write the OpenVINO ``model``, which is changed, to ``target``, every node marked as precise."""
    import openvino as ov

    for node in model.get_ordered_ops():
        rewrite = _REWRITES.get(node.get_type_name())
        if rewrite is not None:
            rewrite(node)
    if any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        _hide_batch_size(model)
    model.validate_nodes_and_infer_types()
    # constants keep their types, as when the engine was built
    ov.save_model(model, target, compress_to_fp16=False)
    tree = ElementTree.parse(target)
    for layer in tree.iter("layer"):
        if layer.get("type") not in _UNMARKED:
            _mark(layer)
    tree.write(target, encoding="utf-8", xml_declaration=True)


def _mark(layer: ElementTree.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, info)
    ElementTree.SubElement(info, "attribute", name="precise", version="0")


def _classifier(node: Any) -> None:
    """Rewrite a MatMul [N, C] x [K, C]: float weights as a convolution, others with a flattening in front."""
    from openvino import opset13 as ops

    taken, weight = node.input_value(0), node.input_value(1)
    sides = list(taken.get_partial_shape())
    pooled = (
        len(sides) == 4 and sides[2] == sides[3] == 1
    )  # what was flattened in front of it is so no longer
    if not (pooled or len(sides) == 2) or sides[1].is_dynamic or not _is_classifier(node):
        return
    if not _is_constant(weight):
        node.input(0).replace_source_output(ops.reshape(taken, _integers(0, -1), special_zero=True).output(0))
        return
    # two reshapes in a row would become a new one, without the mark
    shape = _integers(-1, sides[1].get_length(), 1, 1)
    images = ops.reshape(_before_reshaping(taken), shape, special_zero=False)
    if not node.get_attributes()["transpose_b"]:
        weight = ops.transpose(weight, _integers(1, 0)).output(0)
    convolution = ops.convolution(
        images, ops.unsqueeze(weight, _integers(2, 3)), [1, 1], [0, 0], [0, 0], [1, 1]
    )
    _replace(node, ops.reshape(convolution, _integers(0, -1), special_zero=True).output(0))


def _is_classifier(node: Any) -> bool:
    """Whether a MatMul multiplies each image, [N, C], by the same weights."""
    return len(node.input_value(1).get_partial_shape()) == 2 and not node.get_attributes()["transpose_a"]


def _clip(node: Any) -> None:
    """Rewrite a Minimum of a Maximum, each with a constant, as one Clamp."""
    from openvino import opset13 as ops

    top, inner = node.input_value(0), node.input_value(1).get_node()
    if inner.get_type_name() != "Maximum" or not _is_constant(top) or not _is_constant(inner.input_value(0)):
        return
    low, high = (float(limit.get_node().get_data()) for limit in (inner.input_value(0), top))
    _replace(node, ops.clamp(inner.input_value(1), low, high).output(0))


def _reshaping(node: Any) -> None:
    """Remove the Reshape between a global pool and classifiers alone, which flatten instead; join others in a row."""
    pool = node.input_value(0)
    if pool.get_node().get_type_name() == "ReduceMean" and _feeds_matmuls_alone(node):
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(pool)
    elif pool.get_node().get_type_name() in _RESHAPING:
        _shape(node)


def _feeds_matmuls_alone(node: Any) -> bool:
    """Whether all readers of ``node`` are MatMuls that take it as images, also behind a quantization."""
    readers = [reader for output in node.outputs() for reader in output.get_target_inputs()]
    return bool(readers) and all(
        reader.get_index() == 0 and _is_classifier(reader.get_node())
        if reader.get_node().get_type_name() == "MatMul"
        else reader.get_node().get_type_name() in _QUANTIZING and _feeds_matmuls_alone(reader.get_node())
        for reader in readers
    )


def _pool(node: Any) -> None:
    """Rewrite a MaxPool in the form that the CPU plugin runs."""
    from openvino import opset1 as ops

    names = ("strides", "pads_begin", "pads_end", "kernel", "rounding_type", "auto_pad")
    found = node.get_attributes()
    _replace(node, ops.max_pool(node.input_value(0), *(found[name] for name in names)).output(0))


def _softmax(node: Any) -> None:
    """Rewrite a Softmax in the form that the CPU plugin runs."""
    from openvino import opset1 as ops

    axis = node.get_attributes()["axis"]
    rank = node.get_output_partial_shape(0).rank.get_length()
    _replace(node, ops.softmax(node.input_value(0), axis % rank).output(0))


def _shape(node: Any) -> None:
    """Rewrite a Squeeze, an Unsqueeze or a Reshape, and those in front of it, as one Reshape to a written shape."""
    from openvino import opset1 as ops

    sides = list(node.get_output_partial_shape(0))
    if sum(side.is_dynamic for side in sides) <= 1:
        shape = _integers(*(-1 if side.is_dynamic else side.get_length() for side in sides))
        taken = _before_reshaping(node.input_value(0))
        _replace(node, ops.reshape(taken, shape, special_zero=False).output(0))


def _before_reshaping(output: Any) -> Any:
    while output.get_node().get_type_name() in _RESHAPING:
        output = output.get_node().input_value(0)
    return output


def _resize(node: Any) -> None:
    """Rewrite an Interpolate of opset 11 in the form that the CPU plugin runs, which takes sizes and scales."""
    from openvino import opset10 as ops  # its Interpolate is the one of opset 4

    if node.get_type_info().version_id != "opset11":
        return
    found = node.get_attributes()
    taken, by = node.input_value(0), node.input_value(1)
    axes = (
        node.input_value(2)
        if node.get_input_size() > 2
        else _integers(*range(len(taken.get_partial_shape())))
    )
    count = by.get_partial_shape()[0].get_length()
    # what the mode does not ask for is not read
    scales = found["shape_calculation_mode"] == "scales"
    sizes, factors = (
        (_integers(*[1] * count), by) if scales else (by, ops.constant(np.ones(count, np.float32)))
    )
    kept = (
        "coordinate_transformation_mode",
        "nearest_mode",
        "antialias",
        "pads_begin",
        "pads_end",
        "cube_coeff",
    )
    resized = ops.interpolate(
        taken, sizes, factors, found["mode"], found["shape_calculation_mode"], axes=axes,
        **{name: found[name] for name in kept},
    )  # fmt: skip
    _replace(node, resized.output(0))


def _leaky(node: Any) -> None:
    """Rewrite a leaky ReLU as the sum of its halves; OpenVINO recognizes one in the larger of its two lines."""
    from openvino import opset1 as ops

    taken, slope = node.input_value(0), node.input_value(1)
    if math.prod(slope.get_shape()) != 1:
        return
    most = float(np.finfo(np.float32).max)
    above, below = ops.clamp(taken, 0.0, most), ops.clamp(taken, -most, 0.0)
    slope = ops.reshape(
        slope, _integers(*[1] * taken.get_partial_shape().rank.get_length()), special_zero=False
    )
    _replace(node, ops.add(above, ops.multiply(below, slope)).output(0))


def _padding(node: Any) -> None:
    """Rewrite a Pad in the form that the CPU plugin runs."""
    from openvino import opset1 as ops

    taken = [node.input_value(index) for index in range(node.get_input_size())]
    mode = node.get_attributes()["pad_mode"]
    _replace(node, ops.pad(*taken[:3], mode, *taken[3:]).output(0))


def _hide_batch_size(model: Any) -> None:
    """Hide the batch size from OpenVINO's layers, and change nothing else.

    The server sets the number of images to a constant before it compiles the graph. With a known number OpenVINO fuses
    residual adds into layers that lose the mark. So the first layer reads only the images from 0 to the batch size plus
    a hidden zero (``_hidden_zero``), which are all of them, in a dimension of unknown size. A reshape at each end gives
    the outputs the known size again, which the server checks.
    """
    from openvino import opset13 as ops

    (given,) = model.inputs
    count = ops.gather(ops.shape_of(given), _integers(0), _integers(0))
    reader = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution").input(0)
    while reader.get_source_output().get_node().get_type_name() in _DEQUANTIZING:
        reader = reader.get_source_output().get_node().input(0)
    stop = ops.add(count, _hidden_zero(given))
    images = ops.strided_slice(reader.get_source_output(), _integers(0), stop, _integers(1), [0], [0])
    reader.replace_source_output(images.output(0))
    for answer in model.outputs:
        result = answer.get_node().input(0)
        values = result.get_source_output()
        # 0 keeps a side that follows from the size of the images
        sides = [side.get_length() if side.is_static else 0 for side in list(values.get_partial_shape())[1:]]
        names = values.get_names()
        values.set_names(set())
        fixed = ops.reshape(values, ops.concat([count, _integers(*sides)], 0), special_zero=True)
        fixed.output(0).set_names(names)
        result.replace_source_output(fixed.output(0))


def _hidden_zero(images: Any) -> Any:
    """A zero [1] that OpenVINO cannot fold into a constant.

    It is 1 if the first value of ``images`` both equals and differs from itself. No number does, and NaN only differs;
    but OpenVINO does not reason about two comparisons at once.
    """
    from openvino import opset13 as ops

    flat = ops.reshape(images, _integers(-1), special_zero=False)
    value = ops.gather(flat, _integers(0), _integers(0))
    contradiction = ops.logical_and(ops.equal(value, value), ops.not_equal(value, value))
    return ops.convert(contradiction, "i64")


_REWRITES = {
    "Interpolate": _resize,
    "MatMul": _classifier,
    "MaxPool": _pool,
    "Minimum": _clip,
    "PRelu": _leaky,
    "Pad": _padding,
    "Reshape": _reshaping,
    "Softmax": _softmax,
    "Squeeze": _shape,
    "Unsqueeze": _shape,
}


def _is_constant(output: Any) -> bool:
    node = output.get_node()
    if node.get_type_name() == "Convert":  # weights that are kept in FP16
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant" and node.get_element_type().is_real())


def _integers(*values: int) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))


def _replace(node: Any, output: Any) -> None:
    """Replace ``node`` by ``output``, which gets its names."""
    output.add_names(node.output(0).get_names())
    output.get_node().set_friendly_name(node.get_friendly_name())
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(output)

"""Writes an OpenVINO graph that infers in f32 by itself, for a server that cannot set the precision.

Triton Inference Server does not pass an inference precision to OpenVINO (its backend knows ``HINT_BF16: YES`` alone,
and OpenVINO ignores a precision in the graph's ``runtime_options``), so CPUs with bfloat16 would round float layers to
it. OpenVINO does not round layers that the graph marks as ``precise``. Its passes replace some layers by new ones
without the mark, so these layers are written in forms that stay:

* a float classifier becomes a 1x1 convolution, because a MatMul becomes a fully connected layer;
* a clip is one Clamp, and pools and paddings are of the first operator set, because others are converted to these;
* the flattening behind the global pool is done after quantization, where the numbers are integers;
* an INT8 graph hides the batch size, because with a known one residual adds are fused into new layers.

Checked with OpenVINO 2025.4.1 and 2026.4.1 on a CPU with AMX: answers equal the engine's, and for INT8 to the bit. With
2024.3, float graphs infer in f32 but INT8 graphs still round some layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

_DEQUANTIZING = {"Convert", "Subtract", "Multiply"}
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

    taken = node.input_value(0)
    if not _is_constant(node.input_value(1)):
        node.input(0).replace_source_output(ops.reshape(taken, _integers(0, -1), special_zero=True).output(0))
        return
    images = ops.reshape(taken, _integers(0, -1, 1, 1), special_zero=True)
    weight = ops.unsqueeze(node.input_value(1), _integers(2, 3))
    convolution = ops.convolution(images, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    _replace(node, ops.squeeze(convolution, _integers(2, 3)).output(0))


def _clip(node: Any) -> None:
    """Rewrite a Minimum of a Maximum, each with a constant, as one Clamp."""
    from openvino import opset13 as ops

    top, inner = node.input_value(0), node.input_value(1).get_node()
    if inner.get_type_name() != "Maximum" or not _is_constant(top) or not _is_constant(inner.input_value(0)):
        return
    low, high = (float(limit.get_node().get_data()) for limit in (inner.input_value(0), top))
    _replace(node, ops.clamp(inner.input_value(1), low, high).output(0))


def _flattening(node: Any) -> None:
    """Remove the Reshape behind a global pool; the classifier flattens instead."""
    pool = node.input_value(0)
    if pool.get_node().get_type_name() == "ReduceMean":
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(pool)


def _pool(node: Any) -> None:
    """Rewrite a MaxPool in the form that the CPU plugin runs."""
    from openvino import opset1 as ops

    names = ("strides", "pads_begin", "pads_end", "kernel", "rounding_type", "auto_pad")
    found = node.get_attributes()
    _replace(node, ops.max_pool(node.input_value(0), *(found[name] for name in names)).output(0))


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
    "MatMul": _classifier,
    "MaxPool": _pool,
    "Minimum": _clip,
    "Pad": _padding,
    "Reshape": _flattening,
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

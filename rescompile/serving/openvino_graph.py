"""An OpenVINO graph that infers in f32 without being told, for servers that cannot tell.

Triton Inference Server hands OpenVINO no inference precision (its backend knows ``HINT_BF16: YES`` and nothing else,
and OpenVINO ignores a precision in the graph's ``runtime_options``), so CPUs with bfloat16 would round float layers to
it. OpenVINO leaves layers alone that the graph marks as ``precise``. Its own passes put new layers without the mark in
the place of some, so those are written in forms that stay:

* a float classifier becomes a convolution of 1x1, because a MatMul becomes a fully connected layer;
* a clip is one Clamp, pools and paddings are of the first operator set, because others are converted to these;
* the flattening behind the global pool is done after quantization, where the numbers are integers;
* an INT8 graph hides the number of images: with a fixed one, residual adds are fused into new layers.

Seen with OpenVINO 2025.4.1 and 2026.4.1 on a CPU with AMX: the answers are those of the engine, INT8 ones to the bit.
With 2024.3, float graphs infer in f32 but INT8 graphs still round some layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

_DEQUANTIZING = {"Convert", "Subtract", "Multiply"}
_UNMARKED = {"Const", "Parameter", "Result"}


def write_precise(source: Path, target: Path) -> None:
    """Write the model at ``source`` (``.xml`` with its ``.bin``) to ``target``, every node marked as precise."""
    import openvino as ov

    model = ov.Core().read_model(source)
    for node in model.get_ordered_ops():
        rewrite = _REWRITES.get(node.get_type_name())
        if rewrite is not None:
            rewrite(node)
    if any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        _free_batch(model)
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
    """A MatMul [N, C] x [K, C]: of float weights as a convolution, else with its input flattened in front of it."""
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
    """A Minimum of a Maximum, each with a constant, as one Clamp."""
    from openvino import opset13 as ops

    top, inner = node.input_value(0), node.input_value(1).get_node()
    if inner.get_type_name() != "Maximum" or not _is_constant(top) or not _is_constant(inner.input_value(0)):
        return
    low, high = (float(limit.get_node().get_data()) for limit in (inner.input_value(0), top))
    _replace(node, ops.clamp(inner.input_value(1), low, high).output(0))


def _flattening(node: Any) -> None:
    """The Reshape behind a global pool: its readers take the pool itself, and the classifier flattens."""
    pool = node.input_value(0)
    if pool.get_node().get_type_name() == "ReduceMean":
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(pool)


def _pool(node: Any) -> None:
    """A MaxPool in the form that the CPU runs, which needs no other in its place."""
    from openvino import opset1 as ops

    names = ("strides", "pads_begin", "pads_end", "kernel", "rounding_type", "auto_pad")
    found = node.get_attributes()
    _replace(node, ops.max_pool(node.input_value(0), *(found[name] for name in names)).output(0))


def _padding(node: Any) -> None:
    """A Pad in the form that the CPU runs."""
    from openvino import opset1 as ops

    taken = [node.input_value(index) for index in range(node.get_input_size())]
    mode = node.get_attributes()["pad_mode"]
    _replace(node, ops.pad(*taken[:3], mode, *taken[3:]).output(0))


def _free_batch(model: Any) -> None:
    """Cut the first layer's quantized input off at a number of images that is known only when the graph runs.

    The cut removes nothing: it is at the number of images, plus one where a value is equal to itself and is not.
    """
    from openvino import opset13 as ops

    (given,), (answer,) = model.inputs, model.outputs
    first_layer = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution")
    count = ops.gather(ops.shape_of(given), _integers(0), _integers(0))
    value = ops.gather(ops.reshape(given, _integers(-1), special_zero=False), _integers(0), _integers(0))
    never = ops.logical_and(ops.equal(value, value), ops.not_equal(value, value))
    hidden = ops.add(count, ops.convert(never, "i64"))
    reader = first_layer.input(0)
    while reader.get_source_output().get_node().get_type_name() in _DEQUANTIZING:
        reader = reader.get_source_output().get_node().input(0)
    taken = reader.get_source_output()
    images = ops.strided_slice(taken, _integers(0), hidden, _integers(1), [0], [0])
    reader.replace_source_output(images.output(0))
    result = answer.get_node().input(0)
    logits = result.get_source_output()
    # the server checks that the output has a fixed number of images again
    classes = list(logits.get_partial_shape())[-1].get_length()
    names = logits.get_names()
    logits.set_names(set())
    fixed = ops.reshape(logits, ops.concat([count, _integers(classes)], 0), special_zero=False)
    fixed.output(0).set_names(names)
    result.replace_source_output(fixed.output(0))


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
    """Let the readers of ``node`` take ``output`` under the same names."""
    output.add_names(node.output(0).get_names())
    output.get_node().set_friendly_name(node.get_friendly_name())
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(output)

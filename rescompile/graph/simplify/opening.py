"""The user's file as an editable graph: every size known, constants folded, in an opset that all stages know."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, shape_inference, version_converter

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.names import IR_VERSION, OPSET

OLDEST_OPSET = 7
_OWN_DOMAINS = ("", "ai.onnx")


def opened(model: onnx.ModelProto, size: tuple[int, int] | None, batch: int = 1) -> gs.Graph:
    """``model`` with sizes at every tensor where they can be known, and without nodes that compute constants.

    ``batch`` is the number of images where the file leaves it open.

    Raises:
        GraphError: the opset is too old, the file was optimized or quantized by another tool, it has not one image as
            its input, or it leaves height and width open and ``size`` does not give them.
    """
    model = _in_our_opset(_expanded(model))
    _fix_sizes(model, size, batch)
    graph = read(_with_shapes(model))
    _refuse_quantized(graph)
    graph.fold_constants().cleanup(remove_unused_graph_inputs=True).toposort()
    # what was folded may have held the sizes of a Reshape
    graph = read(_with_shapes(write(graph)))
    graph.fold_constants().cleanup().toposort()
    graph.opset = _needed_opset(graph)
    _refuse_training(graph)
    return graph


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` with the convolutions that ONNX Runtime's optimizer fused, and parts of shapes, written out.

    Raises:
        GraphError: another operator that is not ONNX's own.
    """
    copy, nodes = onnx.ModelProto(), list[onnx.NodeProto]()
    copy.CopyFrom(model)
    for node in model.graph.node:
        if node.domain in _OWN_DOMAINS:
            nodes += _sliced_shape(node) if node.op_type == "Shape" else [node]
        elif node.op_type == "FusedConv":
            nodes += _fused_conv(node)
        else:
            raise GraphError(
                f"'{node.name or node.output[0]}' is {node.domain}.{node.op_type}, which is not an ONNX operator: pass "
                "the file as it was before ONNX Runtime or another tool optimized it"
            )
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.functions[:]
    own = [entry for entry in model.opset_import if entry.domain in _OWN_DOMAINS]
    del copy.opset_import[:]
    copy.opset_import.extend(own)
    return copy


def _sliced_shape(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Shape of some dimensions as Slice of all, because graphsurgeon folds Shape without its ``start`` and ``end``."""
    bounds = {field.name: field.i for field in node.attribute}
    if not bounds:
        return [node]
    whole, (part,) = f"{node.output[0]}.whole", node.output
    starts = helper.make_node("Constant", [], [f"{part}.starts"], value_ints=[bounds.get("start", 0)])
    ends = helper.make_node(
        "Constant", [], [f"{part}.ends"], value_ints=[bounds.get("end", np.iinfo(np.int64).max)]
    )
    return [
        helper.make_node("Shape", [node.input[0]], [whole]),
        starts,
        ends,
        helper.make_node("Slice", [whole, starts.output[0], ends.output[0]], [part], name=node.name),
    ]


def _fused_conv(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """ONNX Runtime's FusedConv as Conv, Add of its fourth input, and activation."""
    attributes = {field.name: helper.get_attribute_value(field) for field in node.attribute}
    activation = attributes.pop("activation", b"").decode()
    if activation not in ("", "Relu", "Sigmoid", "Tanh"):
        raise GraphError(
            f"'{node.name}' is ONNX Runtime's FusedConv with {activation}: pass the file as it was before "
            "ONNX Runtime optimized it"
        )
    attributes.pop("activation_params", None)
    last = node.output[0]
    steps = [
        "Conv",
        *(["Add"] if len(node.input) > 3 and node.input[3] else []),
        *([activation] * bool(activation)),
    ]
    names = [f"{last}.{step}" for step in steps[:-1]] + [last]
    made = []
    for step, name in zip(steps, names, strict=True):
        label = f"{node.name or last}.{step}" if len(steps) > 1 else node.name
        if step == "Conv":
            inputs = [entry for entry in node.input[:3] if entry]
            made.append(helper.make_node("Conv", inputs, [name], name=label, **attributes))
        else:
            inputs = [made[-1].output[0], *([node.input[3]] if step == "Add" else [])]
            made.append(helper.make_node(step, inputs, [name], name=label))
    return made


def _in_our_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = max((entry.version for entry in model.opset_import if entry.domain in _OWN_DOMAINS), default=0)
    if opset < OLDEST_OPSET:
        raise GraphError(
            f"the graph has opset {opset}; rescompile reads {OLDEST_OPSET} and newer: export it again"
        )
    if opset >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise GraphError(
            f"the graph has opset {opset} and cannot be converted to {OPSET} ({reason}): export it again with "
            f"opset {OPSET}"
        ) from None


def _needed_opset(graph: gs.Graph) -> int:
    """Our opset, or the newer one that brought the youngest of the graph's operators."""
    since = [
        onnx.defs.get_schema(node.op, graph.opset, "").since_version
        for node in graph.nodes
        if onnx.defs.has(node.op, graph.opset, "")
    ]
    return max([OPSET, *since])


def _fix_sizes(model: onnx.ModelProto, size: tuple[int, int] | None, batch: int) -> None:
    """Give the image input a batch and a height and width; forget sizes that the exporter wrote elsewhere."""
    constants = {tensor.name for tensor in model.graph.initializer}
    images = [entry for entry in model.graph.input if entry.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(images)
    if len(images) != 1:
        raise GraphError(
            f"the graph has {len(images)} inputs ({', '.join(entry.name for entry in images)}); rescompile builds "
            "networks that read one image"
        )
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    if len(dims) != 4:
        raise GraphError(
            f"the graph's input '{image.name}' has {len(dims)} dimensions; rescompile builds networks that read "
            "images [N, C, H, W]"
        )
    if not dims[0].dim_value:
        dims[0].dim_value = batch
    height, width, channels = (1, 2, 3) if _reads_nhwc(model, image.name) else (2, 3, 1)
    for axis, side in zip((height, width), size or (0, 0), strict=True):
        if not dims[axis].dim_value:
            if not side:
                raise GraphError(
                    "the graph leaves the size of its images open; say which one the engine is for, as with --crop 224"
                )
            dims[axis].dim_value = side
    if not 1 <= dims[channels].dim_value <= 4:
        raise GraphError(
            f"the graph's input has {dims[channels].dim_value or 'an unknown number of'} channels; rescompile reads "
            "images of 1 to 4 channels"
        )
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model.ir_version = max(model.ir_version, IR_VERSION)


def leaves_batch_open(model: onnx.ModelProto) -> bool:
    """Whether the file of a network of images takes any number of them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    image = next(entry for entry in model.graph.input if entry.name not in constants)
    return not image.type.tensor_type.shape.dim[0].dim_value


def _reads_nhwc(model: onnx.ModelProto, name: str) -> bool:
    """Whether the graph turns its input from [N, H, W, C] to [N, C, H, W] before anything else, casts aside."""
    users = [node for node in model.graph.node if name in node.input]
    while len(users) == 1 and users[0].op_type == "Cast":
        name = users[0].output[0]
        users = [node for node in model.graph.node if name in node.input]
    return len(users) == 1 and users[0].op_type == "Transpose" and _perm(users[0]) == [0, 3, 1, 2]


def _perm(node: onnx.NodeProto) -> list[int]:
    return next((list(field.ints) for field in node.attribute if field.name == "perm"), [])


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(model, data_prop=True)
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise GraphError(
            f"the sizes of the graph's tensors do not fit together ({reason}): export it again"
        ) from None


def _refuse_quantized(graph: gs.Graph) -> None:
    for node in graph.nodes:
        if (
            "Quantize" in node.op
            or node.op.startswith("QLinear")
            or node.op in ("ConvInteger", "MatMulInteger")
        ):
            raise GraphError(
                f"the graph is quantized already ('{node.name}' is {node.op}): pass the float model it was made from"
            )


def _refuse_training(graph: gs.Graph) -> None:
    for node in graph.nodes:
        training = node.op == "BatchNormalization" and node.attrs.get("training_mode", 0)
        mode = node.inputs[2] if node.op == "Dropout" and len(node.inputs) > 2 else None
        if training or (isinstance(mode, gs.Constant) and bool(mode.values)):
            raise GraphError(
                f"'{node.name}' ({node.op}) computes as in training, where an answer depends on the other images: "
                "export the network in eval mode"
            )

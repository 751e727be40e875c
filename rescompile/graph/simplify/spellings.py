"""Rewrites of one operation that exporters write in several ways into the form that the other stages know."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import reconnect
from rescompile.graph.shared.links import consumers, made_by

_SPATIAL = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)


def rewrite(graph: gs.Graph) -> None:
    """Apply all rewrites to ``graph``, whose sizes are known."""
    for step in (
        _drop_passive,
        _widen,
        _add,
        _explicit_attributes,
        _gathered_in_order,
        _global_pool,
        _flatten,
        _classifier,
        _merge_pads,
    ):
        step(graph)
        graph.cleanup().toposort()


def _drop_passive(graph: gs.Graph) -> None:
    """Remove operators that do nothing at inference: Identity, Dropout, casts between floats, and Sum of one."""
    for node in [node for node in graph.nodes if node.outputs]:
        passive = node.op in ("Identity", "Dropout") or (node.op == "Cast" and node.attrs["to"] in _FLOATS)
        if passive or (node.op in ("Sum", "Concat") and len(node.inputs) == 1):
            _bypass(graph, node)


def _bypass(graph: gs.Graph, node: gs.Node) -> None:
    source, copy = node.inputs[0], node.outputs[0]
    if node.op == "Cast" and np.dtype(source.dtype or np.float32).kind != "f":
        return  # it makes numbers of integers
    reconnect(copy.outputs, copy, source)
    graph.outputs = [source if out is copy else out for out in graph.outputs]
    node.outputs.clear()


def _widen(graph: gs.Graph) -> None:
    """Make FP16 and FP64 constants and tensors FP32, so that there is one reference type."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            if tensor.values.dtype in (np.float16, np.float64):
                tensor.values = tensor.values.astype(np.float32)
        elif tensor.dtype in (np.float16, np.float64):
            tensor.dtype = np.float32


def _add(graph: gs.Graph) -> None:
    """Write a Sum of two as Add."""
    for node in graph.nodes:
        if node.op == "Sum" and len(node.inputs) == 2:
            node.op = "Add"


def _explicit_attributes(graph: gs.Graph) -> None:
    """Write defaults and ``auto_pad`` of convolutions and pools as numbers."""
    for node in graph.nodes:
        if node.op not in _SPATIAL:
            continue
        if node.op in ("Conv", "ConvTranspose"):
            shape = node.inputs[1].shape
            node.attrs.setdefault("group", 1)
        else:
            shape = (0, 0, *node.attrs["kernel_shape"])
        if not shape or len(shape) != 4:
            continue
        kernel = node.attrs.setdefault("kernel_shape", list(shape[2:]))
        strides = node.attrs.setdefault("strides", [1, 1])
        if node.op in ("Conv", "ConvTranspose"):
            node.attrs.setdefault("dilations", [1, 1])
        mode = node.attrs.get("auto_pad", "NOTSET")
        size = node.inputs[0].shape
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            if node.op == "ConvTranspose" or not size:
                continue
            spread = node.attrs.get("dilations", [1, 1])
            totals = [
                max((-(-side // s) - 1) * s + (k - 1) * d + 1 - side, 0)
                for side, k, s, d in zip(size[2:], kernel, strides, spread, strict=True)
            ]
            small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
            node.attrs["pads"] = small + large if mode == "SAME_UPPER" else large + small
        node.attrs.pop("auto_pad", None)
        node.attrs.setdefault("pads", [0, 0, 0, 0])


def _replace(graph: gs.Graph, last: gs.Node, op: str, inputs: list[gs.Tensor], **attrs: object) -> gs.Node:
    """Put a new node in the place of ``last``, with its output tensor and its name."""
    outputs = list(last.outputs)
    last.outputs.clear()
    graph.nodes.append(node := gs.Node(op, last.name, attrs, inputs, outputs))
    return node


def _global_pool(graph: gs.Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "ReduceMean" and len(node.inputs[0].shape or ()) == 4 and _axes(node) == {2, 3}:
            pool = _replace(graph, node, "GlobalAveragePool", [node.inputs[0]])
            if not node.attrs.get("keepdims", 1):
                _flatten_behind(graph, pool)
        elif node.op == "AveragePool" and _covers_input(node):
            _replace(graph, node, "GlobalAveragePool", [node.inputs[0]])


def _flatten_behind(graph: gs.Graph, pool: gs.Node) -> None:
    flat, pooled = pool.outputs[0], gs.Variable(f"{pool.outputs[0].name}.pooled", np.float32)
    pooled.shape = [*pool.inputs[0].shape[:2], 1, 1]
    pool.outputs = [pooled]
    graph.nodes.append(gs.Node("Flatten", f"{pool.name}.flatten", {"axis": 1}, [pooled], [flat]))


def _axes(node: gs.Node) -> set[int]:
    found = node.attrs.get("axes")
    if found is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        found = node.inputs[1].values.tolist()
    return {axis % 4 for axis in found or ()}


def _covers_input(pool: gs.Node) -> bool:
    shape = pool.inputs[0].shape
    kernel, pads = list(pool.attrs["kernel_shape"]), pool.attrs.get("pads", [0] * 4)
    return bool(shape) and list(shape[2:]) == kernel and not any(pads)


def _gathered_in_order(graph: gs.Graph) -> None:
    """Write a Gather that takes all values in their order, as PyTorch exports ``as_strided``, as a Reshape."""
    for node in [node for node in graph.nodes if node.op == "Gather"]:
        flat, places = node.inputs[:2]
        if made_by(flat) != "Reshape" or not isinstance(places, gs.Constant):
            continue
        source, order = flat.inputs[0].inputs[0], places.values
        if len(flat.shape or ()) != 1 or not np.array_equal(order.ravel(), np.arange(flat.shape[0] or 0)):
            continue
        if list(source.shape or ()) == list(order.shape):
            node.inputs = [source]
            _bypass(graph, node)
        else:
            sizes = gs.Constant(f"{node.outputs[0].name}.sizes", np.array(order.shape, np.int64))
            _replace(graph, node, "Reshape", [source, sizes])


def _flatten(graph: gs.Graph) -> None:
    """Make Flatten of every node that turns [N, ...] into [N, K], and drop those that change nothing, or make an output
    [N] of [N, 1]."""
    batch = graph.inputs[0].shape[0]
    for node in list(graph.nodes):
        if node.op not in ("Reshape", "Flatten", "Squeeze"):
            continue
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if list(before or ()) == [batch, 1] and list(after or ()) == [batch] and not node.outputs[0].outputs:
            _bypass(graph, node)  # one number for each image is a row of one
            continue
        if not before or not after or len(after) != 2 or not before[0] == after[0] == batch:
            continue
        if len(before) == 2:
            _bypass(graph, node)
        else:
            _replace(graph, node, "Flatten", [node.inputs[0]], axis=1)


def _classifier(graph: gs.Graph) -> None:
    """Write MatMul (+ Add) of matrices, and every form of Gemm with constant weights, as Gemm with transB = 1."""
    for node in list(graph.nodes):
        if node.op == "MatMul" and isinstance(node.inputs[1], gs.Constant):
            if node.inputs[1].values.ndim == 2 and len(node.inputs[0].shape or ()) == 2:
                last, bias = _bias_after(graph, node)
                _linear(graph, last, node.inputs[0], node.inputs[1].values.T, bias)
        elif node.op == "Gemm":
            _gemm(graph, node)


def _bias_after(graph: gs.Graph, node: gs.Node) -> tuple[gs.Node, np.ndarray | None]:
    product, width = node.outputs[0], node.inputs[1].values.shape[1]
    users = consumers(product)
    if len(users) == 1 and users[0].op == "Add" and product not in graph.outputs:
        for tensor in users[0].inputs:
            if isinstance(tensor, gs.Constant) and tensor.values.size in (1, width):
                return users[0], tensor.values
    return node, None


def _gemm(graph: gs.Graph, node: gs.Node) -> None:
    constant = all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:])
    if node.attrs.get("transA", 0) or not constant:
        return  # it stays in floating point, as every operation that no rule knows
    bias = node.inputs[2].values if len(node.inputs) > 2 else None
    weight = node.inputs[1].values * np.float32(node.attrs.get("alpha", 1.0))
    weight = weight if node.attrs.get("transB", 0) else weight.T
    if bias is not None and bias.size not in (1, len(weight)):
        return
    bias = None if bias is None else bias * np.float32(node.attrs.get("beta", 1.0))
    _linear(graph, node, node.inputs[0], weight, bias)


def _linear(
    graph: gs.Graph, last: gs.Node, x: gs.Tensor, weight: np.ndarray, bias: np.ndarray | None
) -> None:
    values = np.zeros(len(weight), np.float32) if bias is None else np.broadcast_to(bias.ravel(), len(weight))
    constants = [
        gs.Constant(f"{last.name}.weight.linear", np.ascontiguousarray(weight, np.float32)),
        gs.Constant(f"{last.name}.bias.linear", np.ascontiguousarray(values, np.float32)),
    ]
    _replace(graph, last, "Gemm", [x, *constants], transB=1)


def _merge_pads(graph: gs.Graph) -> None:
    """Move a Pad of height and width with constant zeros into the convolutions that read it; other Pads stay."""
    for pad in [node for node in graph.nodes if node.op == "Pad"]:
        users, amounts = consumers(pad.outputs[0]), _zeros_around(pad)
        if amounts is None or not users or any(user.op != "Conv" for user in users):
            continue
        if pad.outputs[0] in graph.outputs or any(user.inputs[0] is not pad.outputs[0] for user in users):
            continue
        for conv in users:
            conv.attrs["pads"] = [a + b for a, b in zip(conv.attrs["pads"], amounts, strict=True)]
            conv.inputs[0] = pad.inputs[0]


def _zeros_around(pad: gs.Node) -> list[int] | None:
    """Rows and columns of zeros [top, left, bottom, right]; None where ``pad`` does anything else."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    given = [tensor for tensor in pad.inputs[1:] if tensor.name]
    if not given or not all(isinstance(tensor, gs.Constant) for tensor in given):
        return None
    value = pad.inputs[2].values if len(pad.inputs) > 2 and pad.inputs[2].name else np.zeros(())
    amounts = pad.inputs[1].values.tolist()
    axes = [axis % 4 for axis in pad.inputs[3].values.tolist()] if len(pad.inputs) > 3 else [0, 1, 2, 3]
    by_axis = {axis: (amounts[index], amounts[index + len(axes)]) for index, axis in enumerate(axes)}
    inner = [by_axis.get(axis, (0, 0)) for axis in (0, 1)]
    (top, bottom), (left, right) = (by_axis.get(axis, (0, 0)) for axis in (2, 3))
    found = [top, left, bottom, right]
    if np.any(value) or any(map(any, inner)) or min(found) < 0 or len(amounts) not in (2 * len(axes),):
        return None
    return found

"""An exported ResNet rewritten with the few operators that the other stages know.

Exporters write the same network in many ways: constants as nodes, ReduceMean or AveragePool for the global
pool, Reshape or Squeeze for Flatten, MatMul and Add for the classifier, a Pad in front of a convolution, FP16
weights between casts. Each rewrite here replaces one such spelling; an unknown operator is refused by name.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, reconnect, write
from rescompile.graph.shared.names import OPSET

OLDEST_OPSET = 11
KNOWN_OPS = frozenset(
    ["Conv", "BatchNormalization", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm", "Slice", "Pad"]
)  # fmt: skip


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` in opset 19 and fp32, made of ``KNOWN_OPS`` only.

    Raises:
        GraphError: the opset is too old, there are several inputs or outputs, or an operator, or the use of one, does
            not occur in post-activation ResNets.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise GraphError(
            f"the graph has opset {opset}; rescompile reads {OLDEST_OPSET} and newer: export it again"
        )
    graph = read(model)
    _check_ends(graph)
    _refuse_quantized(graph)
    graph.fold_constants()
    graph.opset = OPSET
    for rewrite in (_drop_passive, _widen, _global_pool, _flatten, _classifier, _merge_pads):
        rewrite(graph)
        graph.cleanup().toposort()
    _check_attributes(graph)
    _refuse_unknown(graph)
    return write(graph)


def _check_ends(graph: gs.Graph) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise GraphError(
            f"the graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; a classifier has one of "
            "each (weights listed as inputs: export with keep_initializers_as_inputs=False)"
        )
    shape = graph.inputs[0].shape
    sizes = list(shape[1:]) if shape and len(shape) == 4 else []
    if len(sizes) != 3 or sizes[0] != 3 or not isinstance(sizes[1], int) or sizes[1] != sizes[2]:
        raise GraphError(
            f"the graph's input has shape {shape}; expected [N, 3, S, S] with a fixed square size S"
        )


def _refuse_quantized(graph: gs.Graph) -> None:
    for node in graph.nodes:
        if "Quantize" in node.op or node.op.startswith("QLinear") or node.op == "ConvInteger":
            raise GraphError(
                f"the graph is quantized already ('{node.name}' is {node.op}): pass the float model it was made from"
            )


def _refuse_unknown(graph: gs.Graph) -> None:
    for node in graph.nodes:
        if node.op not in KNOWN_OPS:
            hint = "; export the logits, without it" if node.op in ("Softmax", "LogSoftmax") else ""
            raise GraphError(f"'{node.name}' is {node.op}, which no post-activation ResNet has{hint}")


def _drop_passive(graph: gs.Graph) -> None:
    """Remove what does nothing at inference: Identity, Dropout and casts between float types."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    for node in list(graph.nodes):
        if node.op in ("Identity", "Dropout") or (node.op == "Cast" and node.attrs["to"] in floats):
            source, copy = node.inputs[0], node.outputs[0]
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


def _replace(graph: gs.Graph, last: gs.Node, op: str, inputs: list[gs.Tensor], **attrs: object) -> None:
    """Put a new node in the place of ``last``, with its output tensor and its name."""
    outputs = list(last.outputs)
    last.outputs.clear()
    graph.nodes.append(gs.Node(op, last.name, attrs, inputs, outputs))


def _global_pool(graph: gs.Graph) -> None:
    for node in list(graph.nodes):
        if (node.op == "ReduceMean" and _axes(node) == {2, 3}) or (
            node.op == "AveragePool" and _covers_input(node)
        ):
            _replace(graph, node, "GlobalAveragePool", [node.inputs[0]])


def _axes(node: gs.Node) -> set[int]:
    found = node.attrs.get("axes")
    if found is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        found = node.inputs[1].values.tolist()
    return {axis % 4 for axis in found or ()}


def _covers_input(pool: gs.Node) -> bool:
    shape = pool.inputs[0].shape
    return bool(shape) and list(shape[2:]) == list(pool.attrs["kernel_shape"])


def _flatten(graph: gs.Graph) -> None:
    """Make one Flatten of all nodes that turn the pool's [N, C, 1, 1] (or [N, C]) into [N, C]."""
    for pool in [node for node in graph.nodes if node.op == "GlobalAveragePool"]:
        tensor = pool.outputs[0]
        while len(tensor.outputs) == 1 and tensor.outputs[0].op in ("Reshape", "Flatten", "Squeeze"):
            tensor = tensor.outputs[0].outputs[0]
        pooled = gs.Variable(f"{pool.name}.pooled", np.float32)
        flat = gs.Variable(f"{pool.name}.flat", np.float32)
        reconnect(tensor.outputs, tensor, flat)
        pool.outputs = [pooled]
        graph.nodes.append(gs.Node("Flatten", f"{pool.name}.flatten", {"axis": 1}, [pooled], [flat]))


def _classifier(graph: gs.Graph) -> None:
    """Write MatMul (+ Add) and every form of Gemm as Gemm with transB = 1."""
    for node in list(graph.nodes):
        if node.op == "MatMul" and isinstance(node.inputs[1], gs.Constant):
            last, bias = _bias_after(node)
            _linear(graph, last, node.inputs[0], node.inputs[1].values.T, bias)
        elif node.op == "Gemm":
            _gemm(graph, node)


def _bias_after(node: gs.Node) -> tuple[gs.Node, np.ndarray | None]:
    users = node.outputs[0].outputs
    if len(users) == 1 and users[0].op == "Add":
        for tensor in users[0].inputs:
            if isinstance(tensor, gs.Constant):
                return users[0], tensor.values
    return node, None


def _gemm(graph: gs.Graph, node: gs.Node) -> None:
    if node.attrs.get("transA", 0) or not isinstance(node.inputs[1], gs.Constant):
        raise GraphError(
            f"'{node.name}' (Gemm) transposes its input or has a computed weight, so it is not a classifier"
        )
    weight = node.inputs[1].values * np.float32(node.attrs.get("alpha", 1.0))
    bias = node.inputs[2].values * np.float32(node.attrs.get("beta", 1.0)) if len(node.inputs) > 2 else None
    _linear(graph, node, node.inputs[0], weight if node.attrs.get("transB", 0) else weight.T, bias)


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
    """Move a constant zero Pad of height and width into the convolutions that read it."""
    for pad in [node for node in graph.nodes if node.op == "Pad"]:
        users = list(pad.outputs[0].outputs)
        amounts = pad.inputs[1].values.tolist() if isinstance(pad.inputs[1], gs.Constant) else []
        if len(amounts) != 8 or any(amounts[i] for i in (0, 1, 4, 5)) or any(u.op != "Conv" for u in users):
            continue
        for conv in users:
            own = conv.attrs.get("pads", [0, 0, 0, 0])
            extra = [amounts[2], amounts[3], amounts[6], amounts[7]]
            conv.attrs["pads"] = [a + b for a, b in zip(own, extra, strict=True)]
            conv.inputs[0] = pad.inputs[0]


def _check_attributes(graph: gs.Graph) -> None:
    """Refuse spatial attributes that the engine backends would read differently."""
    for node in graph.nodes:
        problem = None
        if node.op == "Conv":
            problem = _unusual_conv(node)
        elif node.op == "MaxPool" and (_auto_pad(node) or node.attrs.get("ceil_mode", 0)):
            problem = "auto_pad or ceil_mode"
        if problem:
            raise GraphError(f"'{node.name}' ({node.op}) has {problem}; rescompile takes plain ResNet layers")


def _auto_pad(node: gs.Node) -> bool:
    return bool(node.attrs.get("auto_pad", "NOTSET") != "NOTSET")


def _unusual_conv(node: gs.Node) -> str | None:
    if _auto_pad(node):
        return f"auto_pad={node.attrs['auto_pad']}"
    if node.attrs.get("group", 1) != 1:
        return f"group={node.attrs['group']} (ResNeXt)"
    if not isinstance(node.inputs[1], gs.Constant):
        return "a weight that is computed in the graph (or a parametrization: fold it before the export)"
    return None

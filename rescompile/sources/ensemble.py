"""Several networks that read one input as one graph, whose answer is the mean of theirs.

The mean is that of the logits, or of the probabilities p_i = softmax(logits_i). The graph then returns the logarithm of
the mean, whose softmax is the mean again, so that everything reads its output as logits. With a_i = log p_i and
m = max a_i, it is m + log mean exp(a_i - m), which is finite for all finite logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import onnx
from onnx import compose, helper, version_converter

from rescompile.errors import UsageError
from rescompile.manifest import CheckpointRef
from rescompile.sources.network import EnsembleMean, SourceNetwork

_INPUT, _OUTPUT = "image", "mean"
_LONGEST_NAME = 60


def ensemble_of(networks: Sequence[SourceNetwork], mean: EnsembleMean = "probabilities") -> SourceNetwork:
    """The ``mean`` of the answers of ``networks``, which share one input, one preprocessing and their classes.

    Raises:
        UsageError: fewer than two networks, one twice, or networks whose inputs or outputs differ.
    """
    if len(networks) < 2:
        raise UsageError("an ensemble needs two networks or more; build a single one by itself")
    first, *others = networks
    for number, network in enumerate(others, 2):
        if difference := _difference(first, network):
            raise UsageError(
                f"network {number} of the ensemble, {_called(network)}, {difference} {_called(first)}; join networks "
                "with the same input and outputs"
            )
        if any(network.checkpoint.sha256 == other.checkpoint.sha256 for other in networks[: number - 1]):
            raise UsageError(
                f"network {number} of the ensemble, {_called(network)}, is listed twice; name each network once"
            )
    if mean == "probabilities" and (shape := _shapes(first.graph, "output")[0]) and _has_no_classes(shape):
        raise UsageError(
            f"the networks of the ensemble return {shape}, which is not one row of classes; pass "
            "--ensemble-mean logits to average what they return"
        )
    digest = hashlib.sha256("".join(network.checkpoint.sha256 for network in networks).encode()).hexdigest()
    sources = ", ".join(dict.fromkeys(network.checkpoint.source for network in networks))
    return SourceNetwork(
        graph=_joined([network.graph for network in networks], mean),
        name=_name(networks),
        checkpoint=CheckpointRef(digest, f"ensemble of {sources}"),
        preprocess=first.preprocess,
        preprocess_from=first.preprocess_from,
        class_names=first.class_names,
        notes=tuple(dict.fromkeys(note for network in networks for note in network.notes)),
    )


def member_tensors(graph: onnx.GraphProto) -> tuple[str, ...]:
    """The members' answers in an ensemble's graph, which may have been rewritten.

    They are the inputs of the last mean or, where probabilities are averaged, of its LogSoftmax.
    """
    makers = {name: node for node in graph.node for name in node.output}
    softmaxes = [node for node in graph.node if node.op_type == "LogSoftmax"]
    if softmaxes:
        return tuple(str(node.input[0]) for node in softmaxes)
    last = makers[graph.output[0].name]
    while last.op_type not in ("Mean", "Sum"):
        last = makers[last.input[0]]
    return tuple(map(str, last.input))


def _called(network: SourceNetwork) -> str:
    source = network.checkpoint.source
    return network.name if source == network.name else f"{source} ({network.name})"


def _name(networks: Sequence[SourceNetwork]) -> str:
    name = "-".join(("ensemble", *(network.name for network in networks)))
    return name if len(name) <= _LONGEST_NAME else f"ensemble-{len(networks)}-{networks[0].name}"


def _has_no_classes(shape: list[int]) -> bool:
    return len(shape) != 1 or shape[0] == 1


def _difference(first: SourceNetwork, other: SourceNetwork) -> str | None:
    """Why two networks cannot be averaged, as the middle of a sentence that ends with the name of the first."""
    for side, values in (("input", "takes images of"), ("output", "gives")):
        shapes = [_shapes(network.graph, side) for network in (first, other)]
        if len(shapes[1]) != 1:
            return f"has {len(shapes[1])} {side}s, but only a single one can be averaged with that of"
        if shapes[0] != shapes[1]:
            return f"{values} {shapes[1][0]}, not {shapes[0][0]} as"
    if first.preprocess is not None and other.preprocess is not None and first.preprocess != other.preprocess:
        return f"has another preprocessing ({first.preprocess.difference(other.preprocess)}) than"
    if (
        first.class_names is not None
        and other.class_names is not None
        and first.class_names != other.class_names
    ):
        return "has other class names than"
    return None


def _shapes(model: onnx.ModelProto, side: str) -> list[list[int]]:
    """Shapes of the inputs or outputs without the batch; 0 where a side is free."""
    known = {initializer.name for initializer in model.graph.initializer}
    return [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in getattr(model.graph, side)
        if value.name not in known
    ]


def _joined(models: Sequence[onnx.ModelProto], mean: EnsembleMean) -> onnx.ModelProto:
    """The graphs side by side behind one input, and the mean of their outputs."""
    opset = max(_opset(model) for model in models)
    parts = []
    for number, model in enumerate(models):
        same = model if _opset(model) == opset else version_converter.convert_version(model, opset)
        parts.append(compose.add_prefix(same, f"net{number}."))
    graph = onnx.GraphProto(name="ensemble")
    inputs = [_own_input(part) for part in parts]
    for part, own in zip(parts, inputs, strict=True):
        graph.node.append(helper.make_node("Identity", [_INPUT], [own.name], name=f"{own.name}.shared"))
        graph.node.extend(part.graph.node)
        graph.initializer.extend(part.graph.initializer)
    outputs = [part.graph.output[0] for part in parts]
    graph.node.extend(_mean([output.name for output in outputs], mean))
    for ends, value, name in ((graph.input, inputs[0], _INPUT), (graph.output, outputs[0], _OUTPUT)):
        ends.add().CopyFrom(value)
        ends[0].name = name
    opsets = {entry.domain: entry.version for part in parts for entry in part.opset_import}
    joined = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        functions=[function for part in parts for function in part.functions],
        ir_version=max(part.ir_version for part in parts),
    )
    onnx.checker.check_model(joined)
    return joined


def _mean(answers: list[str], mean: EnsembleMean) -> list[onnx.NodeProto]:
    """The nodes behind the members' answers."""
    if mean == "logits":
        return [helper.make_node("Mean", answers, [_OUTPUT], name=_OUTPUT)]
    logs = [f"log{number}" for number in range(len(answers))]
    steps = [
        *(("LogSoftmax", [answer], log) for answer, log in zip(answers, logs, strict=True)),
        ("Max", logs, "largest"),
        *(("Sub", [log, "largest"], f"{log}.less") for log in logs),
        *(("Exp", [f"{log}.less"], f"{log}.share") for log in logs),
        ("Mean", [f"{log}.share" for log in logs], "shares"),
        ("Log", ["shares"], "shares.log"),
        ("Add", ["largest", "shares.log"], _OUTPUT),
    ]
    return [
        helper.make_node(op, inputs, [output], name=output, axis=1)
        if op == "LogSoftmax"
        else helper.make_node(op, inputs, [output], name=output)
        for op, inputs, output in steps
    ]


def _own_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    known = {initializer.name for initializer in model.graph.initializer}
    own: onnx.ValueInfoProto = next(value for value in model.graph.input if value.name not in known)
    return own


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))

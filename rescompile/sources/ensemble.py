"""Several networks that read one input as one graph, whose answer is the mean of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, version_converter

from rescompile.errors import UsageError
from rescompile.manifest import CheckpointRef
from rescompile.sources.network import SourceNetwork

_INPUT, _OUTPUT = "image", "mean"


def ensemble_of(networks: Sequence[SourceNetwork]) -> SourceNetwork:
    """The mean of the answers of ``networks``, which share one input, one preprocessing and their classes.

    Raises:
        UsageError: fewer than two networks, or ones that differ in what they read or answer.
    """
    if len(networks) < 2:
        raise UsageError("an ensemble needs two networks or more; build a single one by itself")
    first, *others = networks
    for number, network in enumerate(others, 2):
        if difference := _difference(first, network):
            raise UsageError(
                f"network {number} of the ensemble, {network.name}, {difference}; join like networks"
            )
    digest = hashlib.sha256("".join(network.checkpoint.sha256 for network in networks).encode()).hexdigest()
    sources = ", ".join(dict.fromkeys(network.checkpoint.source for network in networks))
    references = [network.reference for network in networks]
    answers = [reference for reference in references if reference is not None]

    def mean(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.mean([answer(images) for answer in answers], axis=0, dtype=np.float32)
        return found

    return SourceNetwork(
        graph=_joined([network.graph for network in networks]),
        name=f"ensemble-{len(networks)}-{first.name}",
        checkpoint=CheckpointRef(digest, f"ensemble of {sources}"),
        preprocess=first.preprocess,
        preprocess_from=first.preprocess_from,
        class_names=first.class_names,
        notes=tuple(dict.fromkeys(note for network in networks for note in network.notes)),
        reference=mean if len(answers) == len(networks) else None,
    )


def _difference(first: SourceNetwork, other: SourceNetwork) -> str | None:
    """What keeps two networks apart, as the end of a sentence."""
    if first.preprocess is not None and other.preprocess is not None and first.preprocess != other.preprocess:
        return f"has another preprocessing ({first.preprocess.difference(other.preprocess)})"
    if (
        first.class_names is not None
        and other.class_names is not None
        and first.class_names != other.class_names
    ):
        return "has other class names"
    for side, values in (("input", "takes"), ("output", "gives")):
        shapes = [_shapes(network.graph, side) for network in (first, other)]
        if shapes[0] != shapes[1] or len(shapes[0]) != 1:
            return f"{values} {shapes[1]}, not one tensor {shapes[0]}"
    return None


def _shapes(model: onnx.ModelProto, side: str) -> list[list[int]]:
    """Shapes of the inputs or outputs without the batch; 0 where a side is free."""
    known = {initializer.name for initializer in model.graph.initializer}
    return [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in getattr(model.graph, side)
        if value.name not in known
    ]


def _joined(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
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
    graph.node.append(helper.make_node("Mean", [output.name for output in outputs], [_OUTPUT], name=_OUTPUT))
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


def _own_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    known = {initializer.name for initializer in model.graph.initializer}
    own: onnx.ValueInfoProto = next(value for value in model.graph.input if value.name not in known)
    return own


def _opset(model: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))

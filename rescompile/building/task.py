"""Decides what a network's output means: as the user says, or as its head shows."""

from __future__ import annotations

from dataclasses import replace

import onnx

from rescompile.accuracy.limits import check_kind, default_limits
from rescompile.building.source import Source
from rescompile.config import BuildConfig
from rescompile.errors import UsageError
from rescompile.manifest import OutputKind

_PASSES_ON = {"Flatten", "Reshape", "Squeeze", "Identity", "Cast"}
_FEATURES = {
    "GlobalAveragePool",
    "AveragePool",
    "ReduceMean",
    "GlobalMaxPool",
    "MaxPool",
    "Relu",
    "LpNormalization",
}
"""Operations behind which an output is not a row of logits: a classifier ends in a weighted operation."""


def with_task(source: Source, config: BuildConfig) -> Source:
    """``source`` with the meaning of its output, and the reason for it.

    Raises:
        UsageError: the output cannot have that meaning, or cannot be held to the limits that were asked.
    """
    kind, reason = _found(source) if config.task == "auto" else (config.task, "as --task says")
    _check(source, kind)
    limits = config.limits or default_limits(config.precision, random_weights=source.random, kind=kind)
    check_kind(limits, kind)
    return replace(source, kind=kind, kind_reason=reason)


def is_guess(source: Source, config: BuildConfig, *, labelled: bool) -> bool:
    """Whether nothing but the number of outputs speaks for classes."""
    named = source.class_names is not None or labelled
    return config.task == "auto" and source.kind == "classes" and not named and not source.random


def _found(source: Source) -> tuple[OutputKind, str]:
    last = source.endings[0] or _last_operation(source.graph)
    if last in _FEATURES or len(_shape(source.graph)) == 4:
        return "features", "it has no classifier"
    if last == "Sigmoid" and source.class_count > 1:
        return "multilabel", "its last operation is a Sigmoid"
    if source.class_count == 1:
        return "binary", "its head has one output"
    return "classes", f"its head has {source.class_count} outputs"


def _check(source: Source, kind: OutputKind) -> None:
    count, rows = source.class_count, len(_shape(source.graph)) == 2
    if kind != "features" and not rows:
        raise UsageError(f"--task {kind} needs one row of numbers for each image, and this network returns a map; pass "
                         "--task features")  # fmt: skip
    if kind == "binary" and count != 1:
        raise UsageError(f"--task binary needs a network of one output, and this one has {count}; pass --task classes, "
                         "multilabel or values")  # fmt: skip
    if kind == "classes" and count < 2:
        raise UsageError("--task classes needs two outputs or more, and this network has one; pass --task binary or "
                         "values")  # fmt: skip


def _shape(graph: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in graph.graph.output[0].type.tensor_type.shape.dim)


def _last_operation(model: onnx.ModelProto) -> str:
    """The operation that makes the output, behind changes of shape and type."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(model.graph.output[0].name)
    while node is not None and node.op_type in _PASSES_ON:
        node = makers.get(node.input[0])
    return node.op_type if node is not None else ""

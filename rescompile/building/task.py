"""Decides what a network's output means: as the user says, or as its head shows."""

from __future__ import annotations

from dataclasses import replace

import onnx

from rescompile.accuracy.limits import check_kind, limits_for
from rescompile.building.calibrate import calibration_of
from rescompile.building.opening import open_source
from rescompile.building.source import Source
from rescompile.config import BuildConfig
from rescompile.errors import UsageError
from rescompile.manifest import OutputKind
from rescompile.progress import Progress

_CLASSIFIER = {"Gemm", "MatMul", "Conv", "Sigmoid"}
_FEATURES = {"GlobalAveragePool", "AveragePool", "ReduceMean", "GlobalMaxPool", "MaxPool", "Relu"}
"""Operations behind which an output is not a row of logits: a classifier ends in a weighted operation. Operations after
both (biases, changes of shape, a division by a norm) do not matter."""


def opened(config: BuildConfig, progress: Progress) -> tuple[Source, BuildConfig]:
    """The network of ``config`` with the meaning of its outputs, and ``config`` with what came along with its weights.

    Raises:
        RescompileError: as ``open_source`` and ``with_task``.
    """
    source = with_task(open_source(config.model, progress, config.image_sets), config)
    return source, replace(config, calibration=calibration_of(source, config.calibration))


def with_task(source: Source, config: BuildConfig) -> Source:
    """``source`` with the meaning of its outputs, and the reason for that of the first.

    ``--task`` is about the first output; the others are what their heads show.

    Raises:
        UsageError: the output cannot have that meaning, or cannot be held to the limits that were asked.
    """
    found = [_found(source, index) for index in range(len(source.graph.graph.output))]
    kind, reason = found[0] if config.task == "auto" else (config.task, "as --task says")
    _check(source, kind)
    limits = limits_for(config.limits, config.precision, random_weights=source.random, kind=kind)
    check_kind(limits, kind)
    return replace(source, kind=kind, kind_reason=reason, other_kinds=tuple(other for other, _ in found[1:]))


def is_guess(source: Source, config: BuildConfig, *, labelled: bool) -> bool:
    """Whether only the number of outputs suggests that they are classes."""
    named = source.class_names is not None or labelled or source.told_kind is not None
    return config.task == "auto" and source.kind == "classes" and not named and not source.random


def _found(source: Source, index: int) -> tuple[OutputKind, str]:
    if index == 0 and source.told_kind is not None:
        return source.told_kind
    shape = _shape(source.graph, index)
    count = shape[1] if len(shape) == 2 and shape[1] else source.class_count
    ending = source.endings[index] if index < len(source.endings) else None
    last = ending or _last_operation(source.graph, index)
    if last in _FEATURES and _names_of_first(source, index, shape) == count:
        # SqueezeNet pools behind its classifier, as a backbone does behind its last block
        return "classes", f"its {count} outputs have names of classes"
    if last in _FEATURES or len(shape) == 4:
        return "features", "nothing behind its last pool or ReLU is a classifier"
    if last == "Sigmoid" and count > 1:
        return "multilabel", "its last operation is a Sigmoid"
    if count == 1:
        return "binary", "its head has one output"
    return "classes", f"its head has {count} outputs"


def _names_of_first(source: Source, index: int, shape: tuple[int, ...]) -> int:
    """Names of classes that the first output has, if it is a row of numbers; 0 for others."""
    return len(source.class_names or ()) if index == 0 and len(shape) == 2 else 0


def _check(source: Source, kind: OutputKind) -> None:
    count, rows = source.class_count, len(_shape(source.graph, 0)) == 2
    if kind != "features" and not rows:
        raise UsageError(f"--task {kind} needs one row of numbers for each image, and this network returns a map; pass "
                         "--task features")  # fmt: skip
    if kind == "binary" and count != 1:
        raise UsageError(f"--task binary needs a network of one output, and this one has {count}; pass --task classes, "
                         "multilabel or values")  # fmt: skip
    if kind == "classes" and count < 2:
        raise UsageError("--task classes needs two outputs or more, and this network has one; pass --task binary or "
                         "values")  # fmt: skip


def _shape(graph: onnx.ModelProto, index: int) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in graph.graph.output[index].type.tensor_type.shape.dim)


def _last_operation(model: onnx.ModelProto, index: int) -> str:
    """The last operation that tells a classifier from features."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(model.graph.output[index].name)
    while node is not None and node.op_type not in _CLASSIFIER | _FEATURES:
        node = next((makers[name] for name in node.input if name in makers), None)
    return node.op_type if node is not None else ""

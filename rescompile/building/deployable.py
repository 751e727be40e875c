"""The deployable graph: quantized, with preprocessing if asked, the rest in the backend's type, and linted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx

from rescompile.backends.base import RestType
from rescompile.building.source import Source
from rescompile.config import BuildConfig
from rescompile.errors import LintError
from rescompile.graph.bias_range import scales_for_int32, with_coarser_weights
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.half import half
from rescompile.graph.lint import RULES, fusable_adds, lint
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.reformats import reformats
from rescompile.graph.shared.metadata import float_reasons
from rescompile.report import FloatOperations, FusedAdds, LintResult


@dataclass(frozen=True)
class Deployable:
    """The graph that every backend builds from, and the result of its lint."""

    graph: onnx.ModelProto
    lint: LintResult
    fused: FusedAdds | None
    reformats: int | None
    """None where nothing is quantized."""


def make_deployable(
    source: Source,
    quantized: onnx.ModelProto | None,
    config: BuildConfig,
    rest_type: RestType,
    fp16_blocks: tuple[str, ...] = (),
) -> Deployable:
    """Rewrite the ``quantized`` graph, or ``source.graph`` where there is none, and check the fusion contract.

    ``fp16_blocks`` are the blocks that are not quantized.

    Raises:
        LintError: the graph breaks a rule; the message names the rule, the block and the fix.
        GraphError: a weight that FP16 cannot hold.
    """
    graph = source.graph if quantized is None else fold_within_int32(quantized)
    if config.input_format == "uint8-nhwc":
        graph = take_uint8(graph, source.preprocess)
    if rest_type == "float16":
        graph = half(graph)
    violations = lint(
        graph,
        precision=config.precision,
        rest_type=rest_type,
        residual_adds=source.residual_adds,
        fp16_blocks=fp16_blocks,
    )
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise LintError(f"the deployable graph breaks the fusion contract: {violations[0]}{more}")
    if quantized is None:
        return Deployable(graph, LintResult(tuple(RULES), ()), None, None)
    fused = FusedAdds(fusable_adds(graph), source.residual_adds, "graph")
    return Deployable(
        graph, LintResult(tuple(RULES), (), floating_operations(graph)), fused, reformats(graph)
    )


def fold_within_int32(quantized: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with zero points folded into biases that fit into int32, which some backends store them as."""
    folded = fold_zero_points(quantized)
    # biases have their final values only now; those that do not fit need other weights, and the weights new biases
    least = scales_for_int32(folded)
    return fold_zero_points(with_coarser_weights(quantized, least)) if least else folded


def floating_operations(graph: onnx.ModelProto) -> tuple[FloatOperations, ...]:
    """The operations that placement left in floating point by reason, most frequent reasons first."""
    reasons = float_reasons(graph)
    by_reason: dict[str, list[str]] = defaultdict(list)
    for node in graph.graph.node:
        if node.name in reasons:
            by_reason[reasons[node.name]].append(node.name)
    listed = sorted(by_reason.items(), key=lambda entry: -len(entry[1]))
    return tuple(FloatOperations(reason, tuple(nodes)) for reason, nodes in listed)

"""The deployable graph: quantized, with preprocessing if asked, the rest in the backend's type, and linted."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from calibration.table import CalibrationTable
from rescompile.backends.base import RestType
from rescompile.config import BuildConfig
from rescompile.errors import LintError
from rescompile.graph.half import half
from rescompile.graph.lint import RULES, fusable_adds, lint
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.quantize import quantize
from rescompile.report import FusedAdds, LintResult
from rescompile.source import Source


@dataclass(frozen=True)
class Deployable:
    """The graph that every backend builds from, and what lint found of it."""

    graph: onnx.ModelProto
    lint: LintResult
    fused: FusedAdds | None


def make_deployable(
    source: Source, table: CalibrationTable | None, config: BuildConfig, rest_type: RestType
) -> Deployable:
    """Rewrite ``source.graph`` for ``config`` and check it against the fusion contract.

    Raises:
        LintError: the graph breaks a rule; the message names the rule, the block and the fix.
        GraphError: a tensor without a scale, or a weight that FP16 cannot hold.
    """
    graph = source.graph
    if table is not None:
        graph = quantize(graph, table.scales())
    if config.input_format == "uint8-nhwc":
        graph = take_uint8(graph, source.preprocess)
    if rest_type == "float16":
        graph = half(graph)
    violations = lint(
        graph, precision=config.precision, rest_type=rest_type, residual_adds=source.residual_adds
    )
    if violations:
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise LintError(f"the deployable graph breaks the fusion contract: {violations[0]}{more}")
    fused = FusedAdds(fusable_adds(graph), source.residual_adds, "graph") if table is not None else None
    return Deployable(graph, LintResult(tuple(RULES), ()), fused)

"""The deployable graph: quantized, with preprocessing if asked, the rest in the backend's type, and linted."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from rescompile.backends.base import RestType
from rescompile.config import BuildConfig
from rescompile.errors import LintError
from rescompile.graph.half import half
from rescompile.graph.lint import RULES, fusable_adds, lint
from rescompile.graph.preprocess import take_uint8
from rescompile.report import FusedAdds, LintResult
from rescompile.source import Source


@dataclass(frozen=True)
class Deployable:
    """The graph that every backend builds from, and what lint found of it."""

    graph: onnx.ModelProto
    lint: LintResult
    fused: FusedAdds | None


def make_deployable(
    source: Source, quantized: onnx.ModelProto | None, config: BuildConfig, rest_type: RestType
) -> Deployable:
    """Rewrite ``quantized``, or ``source.graph`` where nothing is, for ``config`` and check the fusion contract.

    Raises:
        LintError: the graph breaks a rule; the message names the rule, the block and the fix.
        GraphError: a weight that FP16 cannot hold.
    """
    graph = source.graph if quantized is None else quantized
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
    fused = FusedAdds(fusable_adds(graph), source.residual_adds, "graph") if quantized is not None else None
    return Deployable(graph, LintResult(tuple(RULES), ()), fused)

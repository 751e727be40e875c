"""The first question of a visit: does a long reduction want a processor for one large tile, or for several?

The default is one of which a processor holds several, chosen by a model (``candidates.rivals``). Both tiles are checked
and timed on every such product of the training step, and the faster one goes into the run's tuning table, so that the
phases after this one use it.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from benchmarks.gpu.context import Context
from benchmarks.gpu.phase_tuning import add_to_table, problems_of_training
from fused_kernels.candidates import rivals
from fused_kernels.gpus import limit_on
from fused_kernels.launch import Launch
from fused_kernels.problem import Problem
from fused_kernels.tune.call import Call, call_of
from fused_kernels.tune.command import by_weight
from fused_kernels.tune.search import Outcome, launches_with, search
from fused_kernels.tune.timing import Timer, on_gpu
from fused_kernels.tune.verify import Verifier


def residency(context: Context) -> None:
    """Time both tiles of every long reduction, those first that the step spends most arithmetic on."""
    if not context.on_gpu:
        context.skip("every long reduction", "tiles are timed on a GPU, and there is none")
        return
    problems = long_reductions(context)
    for problem in by_weight(problems):
        context.run(problem.key, "residency", partial(_timed, problem, problems[problem], context))


def residency_launches(context: Context) -> list[Launch]:
    """All that this phase will launch, on tensors without values."""
    shared = limit_on(context.device)
    return [
        launch
        for problem in by_weight(long_reductions(context))
        for tile in rivals(problem, shared=shared)
        for launch in launches_with(problem, tile)
    ]


def long_reductions(context: Context) -> Counter[Problem]:
    """Products of the training step that have rivals, and how often it has them."""
    shared = limit_on(context.device)
    found = problems_of_training(context)
    return Counter({problem: count for problem, count in found.items() if rivals(problem, shared=shared)})


def _timed(problem: Problem, count: int, context: Context) -> dict[str, Any]:
    call = call_of(problem, context.device)
    outcome, result = compared(problem, count, call, on_gpu, limit_on(context.device))
    add_to_table(context, problem, outcome.best)
    return result


def compared(
    problem: Problem, count: int, call: Call, timer: Timer, shared: int
) -> tuple[Outcome, dict[str, Any]]:
    """Both tiles checked and timed; the result has the time of one launch of each that is right."""
    alone, several = rivals(problem, shared=shared)
    outcome = search(problem, call, Verifier(call), timer, shared=shared, tiles=(alone, several))
    names = {"alone": alone, "several": several}
    return outcome, {
        "count": count,
        "tiles": {name: tile.to_json() for name, tile in names.items()},
        "ms": {name: outcome.milliseconds.get(tile) for name, tile in names.items()},
        "dropped": [{"tile": tile.to_json(), "reason": reason} for tile, reason in outcome.dropped.items()],
    }

"""The fastest right tile for each problem of the timed steps, by ``fused_kernels.tune``, as far as time allows."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.launches import network_launches
from fused_kernels.choice import Chosen, choosing
from fused_kernels.gpus import limit_on
from fused_kernels.launch import Launch
from fused_kernels.problem import Problem
from fused_kernels.table import FOLDER_VARIABLE, add_entry, current_table, table_name
from fused_kernels.tiles import Tile
from fused_kernels.tune.call import call_of
from fused_kernels.tune.command import by_weight, describe
from fused_kernels.tune.search import launches_of, search
from fused_kernels.tune.timing import on_gpu
from fused_kernels.tune.verify import Verifier

PATIENCE = 20.0
"""Seconds to wait for a problem's candidates to be compiled before the search compiles the rest itself."""


def use_tables(context: Context) -> None:
    """Make every later launch read the table that this run writes."""
    os.environ[FOLDER_VARIABLE] = str(context.options.tables)
    current_table.cache_clear()


def tuning(context: Context) -> None:
    """Search problems of the training step and the inference pass of the bars, heaviest first."""
    if not context.on_gpu:
        context.skip("every problem", "tuning times kernels on a GPU, and there is none")
        return
    problems = problems_to_tune(context)
    shared = limit_on(context.device)
    for problem in problems:
        if context.left() > 0:
            variants = context.precompiler.add(launches_of([problem], shared=shared))
            context.precompiler.wait(variants, min(context.deadline, time.monotonic() + PATIENCE))
        context.run(problem.key, "tuning", partial(_tuned, problem, context, shared))
    context.precompiler.cancel()


def candidate_launches(context: Context) -> Iterator[Launch]:
    """Every launch of every candidate, on tensors without values, those of the heaviest problems first."""
    return launches_of(problems_to_tune(context), shared=limit_on(context.device))


def problems_to_tune(context: Context) -> list[Problem]:
    """Problems by the arithmetic that the steps of the bars spend on them, most first."""
    return by_weight(problems_of_training(context) + _problems(context, training=False))


def problems_of_training(context: Context) -> Counter[Problem]:
    """Every product of the training step of the bars, and how often it has it."""
    return _problems(context, training=True)


def add_to_table(context: Context, problem: Problem, best: Chosen) -> None:
    """Make the launches after this one use ``best``."""
    name = torch.cuda.get_device_name(context.device)
    add_entry(context.options.tables / table_name(name), name, problem.key, best)


def _problems(context: Context, *, training: bool) -> Counter[Problem]:
    found: Counter[Problem] = Counter()

    def listen(problem: Problem) -> Tile | None:
        found[problem] += 1
        return None

    setting = context.setting
    batch, dtype = (
        (context.largest, setting.training_dtype)
        if training
        else (context.inference, setting.inference_dtype)
    )
    with choosing(listen):
        network_launches(context.scale, batch, dtype, training=training)
    return found


def _tuned(problem: Problem, context: Context, shared: int) -> dict[str, Any]:
    call = call_of(problem, context.device)
    outcome = search(problem, call, Verifier(call), on_gpu, shared=shared)
    add_to_table(context, problem, outcome.best)
    return {
        "best": describe(outcome).splitlines()[0],
        "candidates": [
            {"tile": tile if isinstance(tile, str) else tile.to_json(), "ms": ms}
            for tile, ms in outcome.milliseconds.items()
        ],
        "dropped": [{"tile": tile.to_json(), "reason": reason} for tile, reason in outcome.dropped.items()],
    }

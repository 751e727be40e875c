"""``python -m fused_kernels.tune``; exit code 0: done, 1: no GPU or an unknown network, 2: wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from fused_kernels.errors import FusedKernelError, TuningError
from fused_kernels.gpus import capability_of, limit_on
from fused_kernels.launch import interpreted
from fused_kernels.problem import Problem
from fused_kernels.table import FOLDER_VARIABLE, REFERENCE, Chosen, add_entry, read_table, table_name
from fused_kernels.tune.call import Call, call_of
from fused_kernels.tune.network import problems_of
from fused_kernels.tune.search import Check, Outcome, precompile, search
from fused_kernels.tune.timing import Timer, on_gpu
from fused_kernels.tune.verify import Verifier

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "int8": torch.int8}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    parser = _parser()
    asked = parser.parse_args(sys.argv[1:] if arguments is None else list(arguments))
    if asked.batch < 1:
        parser.error(f"--batch {asked.batch}: at least one image is needed")
    try:
        _run(asked)
    except FusedKernelError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(0)


def _run(asked: argparse.Namespace) -> None:
    problems = problems_of(asked.model, batch=asked.batch, dtype=DTYPES[asked.dtype], training=asked.training)
    if not torch.cuda.is_available() or interpreted():
        raise TuningError(
            "tuning needs a CUDA GPU, and there is none here: run it on the machine where the kernels are to be fast"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    output = asked.output or Path(os.environ.get(FOLDER_VARIABLE, ".")) / table_name(name)
    say = partial(print, flush=True)
    tune(problems, device, output, device_name=name, retune=asked.retune, minutes=asked.minutes, say=say)
    print(f"{output}: set {FOLDER_VARIABLE}={output.parent.resolve()} to use it")


def tune(
    problems: Counter[Problem],
    device: torch.device,
    output: Path,
    *,
    device_name: str,
    retune: bool = False,
    minutes: float | None = None,
    timer: Timer = on_gpu,
    verifier: Callable[[Call], Check] = Verifier,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Search for the best tile of each problem, heaviest first, and update the table after each.

    Args:
        problems: how often each occurs.
        device: where to run; on a GPU the candidates are compiled in parallel first.
        output: the table; its entries for other problems stay.
        device_name: as torch names the device.
        retune: also search again for what the table already holds.
        minutes: stop after this long.
        timer: times functions.
        verifier: makes the check of a call's tiles.
        say: called with one line for each problem.
    """
    started = time.monotonic()
    known = read_table(output) if output.is_file() else {}
    todo = [problem for problem in by_weight(problems) if retune or problem.key not in known]
    shared = limit_on(device)
    if device.type == "cuda":
        count = precompile(todo, capability_of(device), shared=shared)
        say(f"{len(todo)} problems, {count} kernels compiled in {time.monotonic() - started:.0f} s")
    outcomes: list[Outcome] = []
    for problem in todo:
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            say(f"stopped after {minutes:g} minutes with {len(todo) - len(outcomes)} problems left")
            break
        call = call_of(problem, device)
        outcomes.append(search(problem, call, verifier(call), timer, shared=shared))
        add_entry(output, device_name, problem.key, outcomes[-1].best)
        say(describe(outcomes[-1]))
    return outcomes


def by_weight(problems: Counter[Problem]) -> list[Problem]:
    """Sort problems by their multiplications in one pass of the network, most first."""
    return sorted(problems, key=lambda problem: -problem.macs * problems[problem])


def describe(outcome: Outcome) -> str:
    """One line, and one more for each tile that was dropped."""
    times, best = outcome.milliseconds, outcome.best
    line = f"{outcome.problem.key}: {_name(best)} {times[best]:.4f} ms, PyTorch {times[REFERENCE]:.4f} ms"
    dropped = (f"  dropped {_name(tile)}: {reason}" for tile, reason in outcome.dropped.items())
    return "\n".join([f"{line}, of {len(times) - 1} right tiles", *dropped])


def _name(chosen: Chosen) -> str:
    if chosen == REFERENCE:
        return chosen
    return f"{chosen.name} {chosen.splits} parts" if chosen.splits > 1 else chosen.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fused_kernels.tune",
        description="Find the fastest correct tile of every convolution of a network on this GPU, or that PyTorch is"
        " faster, and write them to a tuning table.",
    )
    parser.add_argument("--model", default="resnet50", help="resnet18 ... resnet152, cifar-resnet20 ...")
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the activations")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--training", action="store_true", default=True, help="a training step; the default")
    mode.add_argument("--inference", dest="training", action="store_false", help="an inference pass")
    output = f"the table; default: by the GPU's name, in ${FOLDER_VARIABLE} or here"
    parser.add_argument("--output", type=Path, metavar="FILE", help=output)
    retune = "also search again for what the table already holds"
    parser.add_argument("--retune", action="store_true", help=retune)
    minutes = "stop after this long; the heaviest problems come first"
    parser.add_argument("--minutes", type=float, help=minutes)
    return parser

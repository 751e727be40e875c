"""Checks and times a Triton engine on this machine's GPU: ``python -m benchmarks.triton_on_gpu resnet50-int8-triton``

Runs the golden images through every program of the plan with the runtime that ``rescompile.load`` uses, and compares
the logits with those of the plan's executor on the CPU; in INT8 they must be equal to the bit. Then it times each
program: copies and one graph launch. Exit code: 0 right, 1 wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.engine import latency
from rescompile.backends.cuda.driver import open_driver
from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.plan_file import read_plan
from rescompile.backends.triton.reference import ReferenceRunner
from rescompile.backends.triton.runner import PlanRunner
from rescompile.manifest import read_manifest
from rescompile.runtime.golden import read_golden

ALLOWED = {"int8": 0.0, "fp16": 2e-2, "fp32": 1e-3}
"""Largest difference of a logit, over the largest logit."""


def main() -> NoReturn:
    """Check and time one engine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_on_gpu", description=__doc__)
    parser.add_argument("engine", type=Path, help="directory of an engine of the backend triton for this GPU")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="time to measure each program; 0 only checks"
    )
    asked = parser.parse_args()
    manifest = read_manifest(asked.engine)
    plan = read_plan(asked.engine, manifest)
    images, _ = read_golden(asked.engine, manifest)
    runner = PlanRunner(open_driver(), asked.engine, plan)
    right = check(runner, ReferenceRunner(asked.engine, plan), plan, images)
    for program in plan.programs if asked.seconds else ():
        batch = np.resize(images, (program.batch, *images.shape[1:]))
        milliseconds = 1e3 * latency(runner, batch, asked.seconds)
        print(
            f"batch {program.batch}: {milliseconds:.4f} ms, {1e3 * program.batch / milliseconds:,.0f} images/s"
        )
    runner.close()
    raise SystemExit(0 if right else 1)


def check(runner: Any, reference: Any, plan: Plan, images: NDArray[Any]) -> bool:
    """Whether every program gives the executor's logits; prints one line for each."""
    right = True
    for program in plan.programs:
        batch = np.resize(images, (program.batch, *images.shape[1:]))
        found, expected = runner(batch), reference(batch)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        fits = error <= ALLOWED[plan.precision]  # a NaN does not
        print(f"batch {program.batch}: {'right' if fits else 'WRONG'}, largest difference {error:.3g}")
        right = right and fits
    return right


__all__ = ["check", "latency", "main"]


if __name__ == "__main__":
    main()

"""A prebuilt engine on this machine's GPU, against its golden answers: ``python -m benchmarks.gpu.engine DIRECTORY``

It needs NumPy, msgspec, safetensors and the CUDA driver; no torch, no Triton and no pycuda. Every program of the plan
is checked with the golden images, then timed: copies and one graph launch. The results are written after each program.
Exit code: 0 right, 1 a wrong answer or nothing measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.cuda.driver import open_driver
from rescompile.backends.triton.plan_file import read_plan
from rescompile.backends.triton.runner import PlanRunner
from rescompile.errors import RescompileError
from rescompile.files import atomic_write
from rescompile.manifest import read_manifest
from rescompile.runtime.golden import golden_batch


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Check and time one engine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.engine", description=__doc__)
    parser.add_argument("engine", type=Path, help="directory of an engine of the backend triton for this GPU")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="where to write the figures"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time to measure each program (1)")
    asked = parser.parse_args(arguments)
    try:
        wrong = measure(asked.engine, asked.output, asked.seconds)
    except RescompileError as error:
        parser.exit(1, f"error: {error}\n")
    raise SystemExit(1 if wrong else 0)


def measure(engine: Path, output: Path, seconds: float) -> bool:
    """Write one entry for each program; whether an answer was wrong."""
    manifest = read_manifest(engine)
    plan = read_plan(engine, manifest)
    programs: list[dict[str, Any]] = []
    runner = PlanRunner(open_driver(), engine, plan)
    try:
        for program in plan.programs:
            images, check = golden_batch(engine, manifest, program.batch)
            found: dict[str, Any] = {
                "batch": program.batch,
                "launches": len(program.launches),
                "correct": True,
            }
            try:
                check(runner(images))
                found["ms"] = 1e3 * latency(runner, images, seconds)
                found["images_per_s"] = 1e3 * program.batch / found["ms"]
            except RescompileError as error:
                found |= {"correct": False, "worst": str(error)}
            programs.append(found)
            body = {
                "engine": engine.name,
                "precision": plan.precision,
                "target": plan.target,
                "programs": programs,
            }
            atomic_write(output, (json.dumps(body, indent=1) + "\n").encode())
            print(
                f"batch {program.batch}: {found.get('worst') or format(found['ms'], '.4f') + ' ms'}",
                flush=True,
            )
    finally:
        runner.close()
    return not all(found["correct"] for found in programs)


def latency(runner: Any, batch: NDArray[Any], seconds: float) -> float:
    """Median seconds of one call."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 10:
        began = time.perf_counter()
        runner(batch)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


if __name__ == "__main__":
    main()

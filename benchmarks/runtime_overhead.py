"""Measures the overhead of our Python runtime: one call of an engine beside one inference by OpenVINO alone.

    python -m benchmarks.runtime_overhead resnet50-int8-openvino

Both run the same image with the same settings in turns, and must give the same logits to the bit. The raw OpenVINO
request has its input set once and its output read without a copy, which is the least that any program can do. Prints
one JSON object: medians and quartiles in microseconds, and the overhead in percent, as the median of the ratio over the
rounds. The exit code is 1 if the overhead is above the limit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import rescompile
from benchmarks.soak import random_images
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.compilation import of_batch
from rescompile.backends.openvino.compile import compile_model, core
from rescompile.manifest import OPENVINO_MODEL

BAR_PERCENT = 5.0
WARM_UP = 20


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    """Times of one inference: lower quartile, median and upper quartile."""

    model: str
    batch: int
    threads: int | None
    rounds: int
    rescompile_us: tuple[float, float, float]
    openvino_us: tuple[float, float, float]
    overhead_percent: float
    bar_percent: float

    def passed(self) -> bool:
        """Whether the overhead is within the limit."""
        return self.overhead_percent <= self.bar_percent


def measure(directory: Path, *, batch: int, threads: int | None, rounds: int, bar: float) -> Overhead:
    """Time both in turns.

    Raises:
        RescompileError: the engine cannot be loaded, or is not an OpenVINO engine.
    """
    # both are compiled for this batch size
    with rescompile.load(directory, options=RunOptions(threads=threads, batch=batch)) as engine:
        if engine.manifest.backend != "openvino":
            raise rescompile.RescompileError(
                f"{directory} is not an OpenVINO engine, so there is nothing to compare with"
            )
        images = random_images(engine, batch)
        raw = _raw(directory / OPENVINO_MODEL, images, threads)
        contenders: list[Callable[[], NDArray[np.float32]]] = [lambda: engine(images), raw]
        times = np.array([_round(contenders, turn) for turn in range(-WARM_UP, rounds)])[WARM_UP:]
        model = engine.manifest.model
    ours, theirs = (tuple(float(part) for part in np.percentile(column, [25, 50, 75])) for column in times.T)
    return Overhead(
        model=model,
        batch=batch,
        threads=threads,
        rounds=rounds,
        rescompile_us=ours,
        openvino_us=theirs,
        overhead_percent=100 * (float(np.median(times[:, 0] / times[:, 1])) - 1),
        bar_percent=bar,
    )


def _raw(path: Path, images: NDArray[Any], threads: int | None) -> Callable[[], NDArray[np.float32]]:
    """One inference as a program without rescompile would call OpenVINO."""
    import openvino as ov

    model = of_batch(core().read_model(path), len(images))
    request: Any = compile_model(model, RunOptions(threads=threads)).create_infer_request()
    request.set_input_tensor(ov.Tensor(images, shared_memory=True))

    def infer() -> NDArray[np.float32]:
        request.infer(share_outputs=True)
        logits: NDArray[np.float32] = request.get_output_tensor().data
        return logits

    return infer


def _round(contenders: Sequence[Callable[[], NDArray[np.float32]]], turn: int) -> tuple[float, float]:
    """Microseconds of each; they take turns in going first, so that neither always finds warm caches."""
    spent, answers = [0.0, 0.0], [np.empty(0, np.float32)] * 2
    for index in (0, 1) if turn % 2 else (1, 0):
        start = time.perf_counter_ns()
        answers[index] = contenders[index]()
        spent[index] = (time.perf_counter_ns() - start) / 1e3
    if not np.array_equal(*answers):
        raise rescompile.RescompileError("the logits differ from OpenVINO's own")
    return spent[0], spent[1]


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtime_overhead", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("engine", type=Path, help="OpenVINO engine directory")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument(
        "--bar",
        type=float,
        default=BAR_PERCENT,
        help="largest overhead in percent for exit code 0",
    )
    asked = parser.parse_args(words)
    if min(asked.batch, asked.rounds, 1 if asked.threads is None else asked.threads) < 1:
        parser.error("--batch, --rounds and --threads must be 1 or more")
    try:
        found = measure(
            asked.engine, batch=asked.batch, threads=asked.threads, rounds=asked.rounds, bar=asked.bar
        )
    except rescompile.RescompileError as error:
        parser.exit(1, f"error: {error}\n")
    print(msgspec.json.encode(found).decode())
    return 0 if found.passed() else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""``rescompile experiment``: the papers' comparisons, each network trained with several seeds, on one page."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

from rescompile.environment import describe
from rescompile.errors import TrainingError, UsageError, did_you_mean
from rescompile.files import atomic_write
from rescompile.models.form import ShortcutOption
from rescompile.models.registry import find, with_options
from rescompile.models.specification import ModelSpec
from rescompile.presenting.html.experiment_page import experiment_plots, render_experiment
from rescompile.training.data import DIGITS, open_data
from rescompile.training.recipe import Recipe
from rescompile.training.responses import layer_responses
from rescompile.training.run_folder import LAST
from rescompile.training.train import TrainConfig, train
from rescompile.training_report import ExperimentNetwork, ExperimentReport, TrainingReport

_CHECKPOINTS = 20
"""Points of each curve."""


class ExperimentProgress(Protocol):
    """Receives the progress of an experiment."""

    def finished(self, name: str, seed: int, report: TrainingReport, done: int, total: int) -> None:
        """One training has ended: number ``done`` of ``total``."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """One experiment, as it was asked for."""

    name: str
    data: str
    output: Path
    recipe: Recipe
    networks: tuple[str, ...] = ()
    """``NAME`` or ``NAME:SHORTCUT``; none: the experiment's own."""
    seeds: int = 1
    jobs: int = 1
    """Trainings at the same time."""
    resume: bool = False
    validation_set: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """More fields of ``TrainConfig``."""

    def __post_init__(self) -> None:
        known = list(_experiments())
        if self.name not in known:
            raise UsageError(
                f"there is no experiment '{self.name}'.{did_you_mean(self.name, known)} Known: {', '.join(known)}"
            )
        if self.seeds < 1 or self.jobs < 1:
            raise UsageError("an experiment needs one seed and one job at least: pass --seeds 1 --jobs 1")


def run_experiment(config: ExperimentConfig, progress: ExperimentProgress) -> ExperimentReport:
    """Train all networks with all seeds, and write ``experiment.json`` and ``report.html``.

    Raises:
        RescompileError: what a user can mend.
    """
    names = config.networks or networks_of(config)
    specs = {
        name: with_options(find(depth=None, name=_split(name)[0]), shortcut=_split(name)[1]) for name in names
    }
    data = open_data(config.data, config.validation_set)
    if config.output.exists() and any(config.output.iterdir()) and not config.resume:
        raise TrainingError(f"{config.output} is not empty: pass --resume to go on, or another --output")
    started = time.perf_counter()
    trained = _train_all(config, names, len(data.train), progress)
    report = ExperimentReport(
        experiment=config.name,
        question=str(_experiments()[config.name]["question"]),
        data=data.name,
        recipe=config.recipe.about,
        steps=trained[names[0], 0].last.step,
        seeds=tuple(range(config.seeds)),
        networks=tuple(
            _network(
                specs[name],
                name,
                [trained[name, seed] for seed in range(config.seeds)],
                layer_responses(Path(trained[name, 0].directory) / LAST, data),
                # the paper's networks saw other images
                None if config.data == DIGITS else _data("paper_errors.json").get(name.removesuffix(":A")),
            )
            for name in names
        ),
        seconds=time.perf_counter() - started,
        environment=describe(),
        notes=data.notes,
    )
    atomic_write(
        config.output / "experiment.json", msgspec.json.format(msgspec.json.encode(report), indent=2)
    )
    atomic_write(config.output / "report.html", render_experiment(report).encode())
    for plot in experiment_plots(report):
        plot.write(config.output / f"{plot.name}.png")
    return report


def _experiments() -> dict[str, dict[str, Any]]:
    return _data("experiments.json")


def _data(name: str) -> dict[str, Any]:
    text = (resources.files("rescompile.training") / name).read_bytes()
    return msgspec.json.decode(text, type=dict[str, Any])


def networks_of(config: ExperimentConfig) -> tuple[str, ...]:
    """The experiment's own networks: small ones for the digits."""
    chosen = _experiments()[config.name]
    return tuple(chosen["digits" if config.data == DIGITS else "cifar"])


def _split(name: str) -> tuple[str, ShortcutOption | None]:
    network, _, shortcut = name.partition(":")
    return network, shortcut or None  # type: ignore[return-value]  # with_options refuses others


def _train_all(
    config: ExperimentConfig, names: Sequence[str], images: int, progress: ExperimentProgress
) -> dict[tuple[str, int], TrainingReport]:
    # the longest first, so that no process works alone in the end
    tasks = [(name, seed) for name in sorted(names, key=_depth, reverse=True) for seed in range(config.seeds)]
    found: dict[tuple[str, int], TrainingReport] = {}
    for name, seed, report in _results(config, tasks, images):
        found[name, seed] = report
        progress.finished(name, seed, report, len(found), len(tasks))
    return found


def _results(
    config: ExperimentConfig, tasks: Sequence[tuple[str, int]], images: int
) -> Iterator[tuple[str, int, TrainingReport]]:
    if config.jobs == 1:
        for name, seed in tasks:
            yield name, seed, train(_train_config(config, name, seed, images))
        return
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    # a forked process cannot use torch's threads or CUDA
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.jobs, spawn, torch.set_num_threads, (threads,)) as pool:
        running = {
            pool.submit(train, _train_config(config, name, seed, images)): (name, seed)
            for name, seed in tasks
        }
        try:
            for future in as_completed(running):
                yield *running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _train_config(config: ExperimentConfig, name: str, seed: int, images: int) -> TrainConfig:
    network, shortcut = _split(name)
    per_epoch = -(-images // config.recipe.batch_size)
    epochs = config.recipe.total_steps(per_epoch) / per_epoch
    return TrainConfig(
        data=config.data,
        output=config.output / f"{name.replace(':', '-')}-seed{seed}",
        recipe=config.recipe,
        model=network,
        shortcut=shortcut,
        validation_set=config.validation_set,
        seed=seed,
        resume=True,
        epochs_per_checkpoint=max(1, round(epochs / _CHECKPOINTS)),
        **config.options,
    )


def _depth(name: str) -> int:
    return find(depth=None, name=_split(name)[0]).depth


def _network(
    spec: ModelSpec,
    name: str,
    reports: Sequence[TrainingReport],
    responses: tuple[float, ...],
    paper_error: float | None,
) -> ExperimentNetwork:
    train_errors = tuple(report.last.train_error for report in reports)
    test_errors = tuple(report.last.test_error for report in reports)
    first = reports[0]
    return ExperimentNetwork(
        name=name,
        depth=spec.depth,
        plain=not spec.residual,
        train_error=float(np.mean(train_errors)),
        test_error=float(np.mean(test_errors)),
        train_errors=train_errors,
        test_errors=test_errors,
        parameters=first.parameters,
        paper_error=paper_error,
        histories=tuple(report.history for report in reports),
        responses=responses,
    )

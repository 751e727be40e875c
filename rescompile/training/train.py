"""``rescompile train``: from images and a recipe to weights that ``rescompile build`` takes."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fused_kernels import fuse
from rescompile.errors import UsageError
from rescompile.files import atomic_write
from rescompile.models.form import ShortcutOption
from rescompile.optional import installed, require
from rescompile.presenting.html.training_page import render_training
from rescompile.presenting.plots.training import curves
from rescompile.progress import SilentTraining, TrainingProgress
from rescompile.sources.class_names import read_class_names
from rescompile.training.data import DIGITS, TrainingData, open_data
from rescompile.training.feed import Feed, calibration_sample, open_feed
from rescompile.training.keeping import Origin, WeightKeeper
from rescompile.training.loop import Keeper, Loop, Loss, Precision
from rescompile.training.networks import Start, network_with_weights, new_network, parameters_of
from rescompile.training.processes import Process, joined, synchronized
from rescompile.training.recipe import Recipe
from rescompile.training.run_folder import RunFolder, Settings
from rescompile.training_report import TrainingReport

Fuse = Literal["auto", "on", "off"]
CALIBRATION, TEST = "calibration.npz", "test.npz"
CALIBRATION_IMAGES, CALIBRATION_PIXELS = 512, 20_000_000
"""Training images kept to choose INT8 scales with: at most so many, of at most so many pixels together."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training, as it was asked for."""

    data: str
    output: Path
    recipe: Recipe
    model: str | None = None
    weights: Path | None = None
    new_head: bool = False
    shortcut: ShortcutOption | None = None
    validation_set: Path | None = None
    classes: Path | None = None
    precision: Precision = "fp32"
    fuse: Fuse = "auto"
    compile: bool = False
    resume: bool = False
    seed: int = 0
    sync_bn: bool = False
    reproducible: bool = True
    """Whether a GPU takes only kernels that give the same bits each time."""
    workers: int = 4
    epochs_per_checkpoint: int = 1
    qat: bool = False
    """Fine-tune for INT8."""
    backend: str = "auto"
    """The backend whose INT8 that is."""
    fixed_scales: bool = False
    """Whether ``qat`` leaves the scales of activations as they were calibrated."""
    distill: bool = True
    """Whether ``qat`` learns from the fp32 network, and not from the labels."""
    weight_bits: int = 8
    """Bits of the weights that ``qat`` trains."""

    def __post_init__(self) -> None:
        if self.model is None and self.weights is None:
            raise UsageError(
                "no network was named: pass --model resnet20-cifar, or --weights FILE to go on from"
            )
        if self.new_head and self.weights is None:
            raise UsageError(
                "--new-head replaces the classifier of --weights, which were not passed: leave it out"
            )
        if self.qat and (self.weights is None or self.new_head):
            raise UsageError(
                "--qat fine-tunes a network that is trained already: pass its --weights, no --new-head"
            )
        of_qat = self.fixed_scales or not self.distill or self.backend != "auto" or self.weight_bits != 8
        if not self.qat and of_qat:
            raise UsageError(
                "--qat-labels, --qat-scales, --weight-bits and --backend do nothing without --qat: pass that too"
            )
        if not 2 <= self.weight_bits <= 8:
            raise UsageError(f"--weight-bits {self.weight_bits} is not possible: pass 2 to 8")


def train(config: TrainConfig, progress: TrainingProgress | None = None) -> TrainingReport:
    """Train, or go on with a training, and return its history.

    Raises:
        RescompileError: what a user can mend.
    """
    data = open_data(config.data, config.validation_set)
    if config.classes is not None:
        data = replace(data, class_names=read_class_names(config.classes, data.classes))
    start = _start(config, data)
    recipe = config.recipe
    with joined(recipe.batch_size) as process:
        torch.backends.cudnn.deterministic = config.reproducible
        torch.backends.cudnn.benchmark = not config.reproducible
        feed = open_feed(
            data, recipe, known=start.preprocess, seed=config.seed, share=process.share, device=process.device,
            workers=config.workers,
        )  # fmt: skip
        folder = RunFolder(config.output)
        fused = not config.qat and _is_fused(config.fuse, process)
        network, notes, keeper, loss = _subject(config, start, feed, data, folder, process, fused=fused)
        loop = Loop(
            network=network, recipe=recipe, feed=feed, process=process, folder=folder, keeper=keeper,
            progress=(progress or SilentTraining()) if process.writes else SilentTraining(), name=start.spec.name,
            loss=loss,
            precision=config.precision, compiled=config.compile,
            slow_start=bool(recipe.slow_start_depth) and start.spec.depth >= recipe.slow_start_depth,
            epochs_per_checkpoint=config.epochs_per_checkpoint,
        )  # fmt: skip
        if process.writes:
            folder.open(_settings(config, data, start, recipe, fused=fused), resume=config.resume)
        try:
            if process.writes:
                _write_samples(folder, data, feed)
            loop.run()
            report = TrainingReport(
                model=start.spec.name, data=data.name, recipe=recipe.about, directory=str(config.output),
                parameters=parameters_of(network), train_images=len(data.train), test_images=len(data.test),
                history=tuple(loop.history), best_step=loop.best_step,
                notes=(*data.notes, *_augmentation_notes(recipe, data, feed), *notes),
            )  # fmt: skip
            if process.writes:
                write_pages(report, config.output)
        finally:
            folder.close()
        return report


def write_pages(report: TrainingReport, folder: Path) -> None:
    """The curves as a page and as a picture."""
    atomic_write(folder / "report.html", render_training(report).encode())
    curves(report.history).write(folder / "curves.png")


def _start(config: TrainConfig, data: TrainingData) -> Start:
    if config.weights is not None:
        return network_with_weights(
            config.weights, config.model, data.classes, new_head=config.new_head, seed=config.seed
        )
    assert config.model is not None
    return new_network(config.model, data.classes, config.seed, config.shortcut)


def _settings(
    config: TrainConfig, data: TrainingData, start: Start, recipe: Recipe, *, fused: bool
) -> Settings:
    return Settings(
        model=start.spec.name,
        shortcut=start.spec.shortcut,
        classes=data.classes,
        data=data.name,
        data_sha256=data.fingerprint,
        recipe=msgspec.to_builtins(recipe),
        seed=config.seed,
        precision=config.precision,
        fused=fused,
        sync_bn=config.sync_bn,
        weights_sha256=start.weights_sha256,
        kind=f"qat for {config.backend}"
        + " with fixed scales" * config.fixed_scales
        + f" with {config.weight_bits}-bit weights" * (config.weight_bits != 8)
        + " from labels" * (not config.distill)
        if config.qat
        else "train",
    )


def _subject(
    config: TrainConfig,
    start: Start,
    feed: Feed,
    data: TrainingData,
    folder: RunFolder,
    process: Process,
    *,
    fused: bool,
) -> tuple[nn.Module, tuple[str, ...], Keeper, Loss | None]:
    """The module to train, notes on it, the writer of its weights, and its loss if that is not the usual one."""
    if not config.qat:
        network, notes = _prepared(start.network, process, fused=fused, sync_bn=config.sync_bn)
        return (
            network,
            notes,
            WeightKeeper(folder, Origin(start, feed, config.recipe, data, CALIBRATION)),
            None,
        )
    from rescompile.training.quantization_aware import TABLE, QuantizedKeeper, distillation, prepare

    assert config.weights is not None
    origin = Origin(start, feed, config.recipe, data, TABLE)
    prepared = prepare(
        config.weights, start, origin, backend=config.backend, learned_scales=not config.fixed_scales,
        weight_bits=config.weight_bits, images=CALIBRATION_IMAGES,
    )  # fmt: skip
    loss = distillation(prepared.teacher, process.device) if config.distill else None
    keeper = QuantizedKeeper(folder, origin, prepared.table)
    return prepared.network.to(process.device), (), keeper, loss


def _is_fused(wish: Fuse, process: Process) -> bool:
    """Whether blocks are replaced by fused ones: ``auto`` does where the kernels run on a GPU."""
    if wish == "on" and process.device.type == "cuda":
        require("triton", "--fuse on")
    return wish == "on" or (wish == "auto" and process.device.type == "cuda" and installed("triton"))


def _prepared(
    network: nn.Module, process: Process, *, fused: bool, sync_bn: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    if sync_bn and not process.alone:
        network = synchronized(network, process.device)
    network = network.to(process.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not fused:
        return network, ()
    report = fuse(network)
    return network, (f"{len(report.replaced)} of {report.blocks} residual blocks are fused",)


def _augmentation_notes(recipe: Recipe, data: TrainingData, feed: Feed) -> tuple[str, ...]:
    notes = []
    if recipe.flip and not data.mirrored:
        notes.append(
            f"images of {data.name} are not mirrored, because their mirror images mean something else"
        )
    if feed.padding == 0 < recipe.padding:
        notes.append(
            f"images of {data.name} are not shifted by {recipe.padding} pixels, because they have only "
            f"{feed.preprocess.size[0]}; --set augmentation=pad-crop shifts them"
        )
    return tuple(notes)


def _write_samples(folder: RunFolder, data: TrainingData, feed: Feed) -> None:
    """Images to choose INT8 scales with, and the test images if the user did not pass a file of them."""
    height, width = feed.preprocess.size
    count = max(1, min(CALIBRATION_IMAGES, CALIBRATION_PIXELS // (height * width)))
    images, labels = calibration_sample(data, feed.preprocess, count)
    _write_npz(folder.path / CALIBRATION, images, labels)
    if data.name == DIGITS:
        tests = np.concatenate(
            [batch.images for batch in data.test.batches(feed.preprocess, CALIBRATION_IMAGES)]
        )
        assert data.test.labels is not None
        _write_npz(folder.path / TEST, tests, data.test.labels)


def _write_npz(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    atomic_write(path, buffer.getbuffer())

"""The calibration stage: INT8 scales from an image set or from a table that was made earlier."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.collect_statistics import StatisticsRequest, collect_statistics
from calibration.errors import CalibrationError
from calibration.images import ImageSet, open_image_set
from calibration.images.builtin import COUNT, builtin_image_set
from calibration.memory import free_memory
from calibration.methods.comparison import Comparison, compare_methods
from calibration.methods.quantization_risks import weight_risks
from calibration.methods.rounding import IMAGES as LEARNING_IMAGES
from calibration.preprocess import normalize
from calibration.scales import FULL_LEVELS
from calibration.statistics.half import HalfNetwork
from calibration.table import CalibrationTable, make_table, read_table
from rescompile.backends.base import PADDED_CHANNELS, FullRange, Int8Support
from rescompile.building.float_images import words_beyond_pixels
from rescompile.building.method_notes import (
    notes_on_full_range,
    notes_on_pins,
    notes_on_risks,
    notes_on_rounding,
)
from rescompile.building.opening import open_source
from rescompile.building.rewrites import executor_problem
from rescompile.building.source import Source
from rescompile.config import RECIPES, CalibrationConfig, ModelConfig, Recipe
from rescompile.environment import cpu_features
from rescompile.errors import UsageError
from rescompile.files import check_output_file
from rescompile.graph.pixels import reason_against
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.names import INPUT
from rescompile.graph.shared.topology import (
    full_range_tensors,
    quantized_tensors,
    reasons_against_full_range,
    scale_sources,
)
from rescompile.progress import Progress, StageClock

T = TypeVar("T")
BATCH = 2
"""Images per forward pass: large enough for speed on a CPU, small enough for memory with every activation kept."""
BUILT_IN_ADVICE = (
    "INT8 scales come from the built-in photographs; pass --calibration-set with a few hundred of your own images for "
    "the best accuracy"
)
SMALL = 2_000_000
"""Weights of a network whose rounding is learned within seconds: CIFAR's ResNets up to 110 layers."""
HALF_FEATURES = {"amx_bf16", "avx512_bf16"}
"""CPU features with which bfloat16 is faster than float32, as Linux names them."""
ANY_BACKEND = Int8Support()
"""Support that every backend has: a table that is made for it fits all."""


@dataclass(frozen=True)
class Calibrated:
    """The calibration table, how weights are quantized with it, and notes for the user."""

    table: CalibrationTable
    notes: tuple[str, ...] = ()
    recipe: Recipe = RECIPES["fast"]
    samples: tuple[NDArray[np.float32], ...] = field(default=(), compare=False, repr=False)
    """Preprocessed images [3, H, W] to learn the rounding from; none where it is not learned."""
    comparison: Comparison | None = field(default=None, compare=False, repr=False)
    """Every method on every tensor; None for a table that was read."""
    full_range: FullRange = "costs"
    """The backend's ``Int8Support.full_range``. For "costs", weights with inputs of all 256 values stay within 63."""
    exact_pixels: bool = False
    """Whether the first quantizer holds pixels (``graph.pixels``) instead of using the table's scale of the input."""


def calibrate_network(
    model: ModelConfig, calibration: CalibrationConfig, output: Path, progress: Progress
) -> Calibrated:
    """``rescompile calibrate``: calibrate a network for any backend and write the table to ``output``.

    Raises:
        OutputError: the folder of ``output`` does not exist; this is found before any work.
    """
    check_output_file(output)
    clock = StageClock(progress)
    with clock.stage("load"):
        source = open_source(model, progress, (calibration.images,))
    calibration = calibration_of(source, calibration)
    with clock.stage("calibrate"):
        calibrated = calibrate(source, calibration, progress)
    calibrated.table.write(output)
    return calibrated


def calibrate(
    source: Source, config: CalibrationConfig, progress: Progress, int8: Int8Support = ANY_BACKEND
) -> Calibrated:
    """Read and check the table that ``config`` names, or measure one on its images, for a backend with ``int8``.

    The table is the same with and without exact pixels.

    Raises:
        TableError: the table is damaged or was made for another checkpoint, preprocessing or graph.
        UsageError, ImageSetError: as ``calibration_images``.
        CalibrationError: activations that are not finite.
    """
    if config.table is not None:
        return _read(source, config, config.table, int8)
    return _measure(source, config, progress, int8)


def calibration_of(source: Source, config: CalibrationConfig) -> CalibrationConfig:
    """``config`` with the images or the table that came with the weights, unless the user gave some."""
    if source.calibration is None or config.table is not None or config.images is not None:
        return config
    if source.calibration.suffix == ".json":
        return replace(config, table=source.calibration)
    return replace(config, images=source.calibration)


def calibration_images(config: CalibrationConfig, source: Source) -> ImageSet:
    """The user's set, or the built-in photographs for an ImageNet network, up to the limit.

    Raises:
        UsageError: no set was passed and the network is not ImageNet's.
        ImageSetError: the set cannot be used.
    """
    if config.images is not None:
        return open_image_set(
            config.images, limit=config.limit, seed=config.seed, skip_unreadable=config.skip_unreadable
        )
    if not source.is_imagenet:
        raise UsageError(
            f"int8 needs images of what this {source.name} with {source.class_count} classes will see, to choose "
            "scales: pass --calibration-set FOLDER (a few hundred images, no labels needed) or --calibration FILE"
        )
    return builtin_image_set(count=min(COUNT, config.limit), seed=config.seed)


def sample_images(config: CalibrationConfig, source: Source, count: int) -> list[NDArray[np.float32]]:
    """At most ``count`` calibration images [3, H, W], preprocessed.

    Raises:
        UsageError, ImageSetError: as ``calibration_images``.
    """
    images = calibration_images(replace(config, limit=min(count, config.limit)), source)
    batches = images.batches(source.preprocess, BATCH)
    return list(
        islice((image for batch in batches for image in normalize(batch.images, source.preprocess)), count)
    )


def _read(source: Source, config: CalibrationConfig, path: Path, int8: Int8Support) -> Calibrated:
    table = read_table(path)
    table.check(
        checkpoint_sha256=source.checkpoint.sha256,
        preprocess=source.preprocess,
        tensors=quantized_tensors(source.graph),
    )
    if config.method is not None:
        table = table.with_method(config.method)
    _require_range(table, full_range_tensors(source.graph, widest=_widest(int8, asked=True)))
    return Calibrated(
        table,
        recipe=_recipe_of(table, config),
        full_range=int8.full_range,
        exact_pixels=reason_against(source.graph, source.preprocess) is None,
    )


def _measure(source: Source, config: CalibrationConfig, progress: Progress, int8: Int8Support) -> Calibrated:
    tensors = quantized_tensors(source.graph)
    images = calibration_images(config, source)
    inexact = reason_against(source.graph, source.preprocess) or words_beyond_pixels(
        images, source.preprocess
    )
    risks = weight_risks(source.graph)
    recipe, shortened = _that_can_run(_recipe_for(source, config, hard=bool(risks)), source)
    widest = _widest(int8, asked=bool(config.full_range))
    reasons = reasons_against_full_range(source.graph, widest=widest)
    tries_full_range = int8.full_range in recipe.full_range
    wide = [name for name, reason in reasons.items() if reason is None and tries_full_range]
    levels = dict.fromkeys(wide, FULL_LEVELS)
    half = _half_network(source.graph, recipe) if config.fast_collect else None
    free_memory()  # the checks of the network held its weights twice
    found = collect_statistics(
        source.graph,
        tensors,
        (normalize(batch.images, source.preprocess) for batch in images.batches(source.preprocess, BATCH)),
        StatisticsRequest(
            channels=recipe.needs_channels,
            gradients=recipe.needs_gradients,
            equalize=recipe.equalize,
            samples=LEARNING_IMAGES if recipe.rounding == "learned" else 0,
            levels=levels,
            half=half if isinstance(half, HalfNetwork) else None,
        ),
        count=len(images),
        progress=progress.advanced,
    )
    sources = scale_sources(read(source.graph))
    histograms = _of_sources(found.histograms, sources)
    table = make_table(
        histograms,
        recipe.method,
        model=source.name,
        checkpoint_sha256=source.checkpoint.sha256,
        images=images,
        preprocess=source.preprocess,
        logit=None if found.logit is None else _of_sources(found.logit, sources),
        means=found.means,
        factors=found.factors,
        levels=levels,
        first=found.first,
        half=isinstance(half, HalfNetwork),
    )
    thresholds = {name: entry.thresholds for name, entry in table.tensors.items()}
    return Calibrated(
        table,
        (
            *((BUILT_IN_ADVICE,) if config.images is None else ()),
            *notes_on_full_range(reasons if tries_full_range else {}, asked=bool(config.full_range)),
            *((_note_on_half(half),) if half is not None else ()),
            *images.notes,
            *((shortened,) if shortened else ()),
            *((f"the input is rounded to one scale: {inexact}",) if inexact and INPUT in tensors else ()),
            *(notes_on_pins(source.graph, tensors) if recipe.equalize else ()),
            *notes_on_rounding(source.graph, recipe, has_moments=found.first is not None),
            *notes_on_risks((*risks, *found.risks), recipe),
        ),
        recipe,
        found.samples,
        compare_methods(
            histograms, thresholds, found.noise, found.factors, exact=() if inexact else (INPUT,)
        ),
        int8.full_range,
        inexact is None,
    )


def _half_network(graph: onnx.ModelProto, recipe: Recipe) -> HalfNetwork | str:
    """``graph`` in bfloat16, or the end of a sentence that says why statistics are not collected so here."""
    if not HALF_FEATURES & set(cpu_features()):
        return "this CPU has no instructions for bfloat16"
    if not recipe.needs_channels:
        return "--effort fast takes no statistics of channels"
    try:
        return HalfNetwork(graph)
    except CalibrationError as error:
        return str(error)


def _note_on_half(half: HalfNetwork | str) -> str:
    if isinstance(half, HalfNetwork):
        return "the activations' statistics were collected in bfloat16 (--fast-collect)"
    return f"--fast-collect collected in float32, because {half}"


def _of_sources(values: Mapping[str, T], sources: Mapping[str, str]) -> dict[str, T]:
    """``values`` by tensor, where one that has the scale of another gets the other's."""
    return {name: values[sources[name]] for name in values}


def _widest(int8: Int8Support, *, asked: bool) -> int:
    """The most channels of a full-range tensor that may be padded: those that cost nothing, or all if asked."""
    if int8.constant_channels == "never":
        return 0
    return PADDED_CHANNELS if int8.constant_channels == "padding" and not asked else sys.maxsize


def _require_range(table: CalibrationTable, able: Collection[str]) -> None:
    wrong = [name for name, levels in table.levels().items() if levels == FULL_LEVELS and name not in able]
    if wrong:
        raise UsageError(
            f"the calibration table gives '{wrong[0]}' all 256 values of int8, which the backend does not take there; "
            "calibrate with --no-full-range, or for this --backend"
        )


def _recipe_of(table: CalibrationTable, config: CalibrationConfig) -> Recipe:
    """The recipe for weights with a table that was read: as when it was made, with the user's changes."""
    made = RECIPES["balanced" if table.means() else "fast"]
    if table.trained_weight_scales():
        made = replace(made, weight_scales="trained")
    if config.bias_correction and not table.means():
        raise UsageError(
            "--bias-correction needs channel means, which this calibration table does not have; calibrate with "
            "--effort balanced, or leave the option out"
        )
    return replace(
        made,
        method=table.method,
        bias_correction=made.bias_correction if config.bias_correction is None else config.bias_correction,
        weight_scales=config.weight_scales or made.weight_scales,
    )


def _recipe_for(source: Source, config: CalibrationConfig, *, hard: bool) -> Recipe:
    """The methods of the effort, with learned rounding where it takes seconds or weights are hard to round.

    A rounding that the user chose stays, and an effort that the user chose is not raised for hard weights.
    """
    weights = sum(math.prod(tensor.dims) for tensor in source.graph.graph.initializer)
    quick = config.effort != "fast" and weights <= SMALL
    learn = config.rounding is None and (quick or (hard and config.effort is None))
    return replace(config.recipe, rounding="learned") if learn else config.recipe


def _that_can_run(recipe: Recipe, source: Source) -> tuple[Recipe, str | None]:
    """``recipe``, or the part of it that needs no gradients and no single layers, with a note on the reason."""
    if not (recipe.needs_gradients or recipe.rounding == "learned"):
        return recipe, None
    problem = executor_problem(source.graph, source.trial_answers)
    if problem is None:
        return recipe, None
    method = RECIPES["fast"].method if recipe.method == "logit" else recipe.method
    note = (
        f"{problem}: channels are not equalized, thresholds come from histograms ({method}), and weights are rounded "
        "to the nearest"
    )
    return replace(recipe, method=method, equalize=False, rounding="nearest"), note

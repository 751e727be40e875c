"""Calibration as a stage: image set to table, with everything that the table must say of its origin; table to graph."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.collect_statistics import StatisticsRequest, collect_statistics
from calibration.images import ImageSet, open_image_set
from calibration.images.builtin import COUNT, builtin_image_set
from calibration.methods.comparison import Comparison, compare_methods
from calibration.methods.quantization_risks import Risk, weight_risks
from calibration.methods.rounding import IMAGES as LEARNING_IMAGES
from calibration.methods.rounding import learn_rounding
from calibration.preprocess import normalize
from calibration.scales import FULL_LEVELS
from calibration.table import CalibrationTable, make_table, read_table
from rescompile.backends.base import PADDED_CHANNELS, FullRange, Int8Support
from rescompile.building.effort import RECIPES, Recipe
from rescompile.building.first_layer import learned_first
from rescompile.building.source import Source
from rescompile.config import CalibrationConfig
from rescompile.errors import UsageError
from rescompile.graph.equalize import equalize
from rescompile.graph.pixels import can_be_exact, read_pixels, to_pixels
from rescompile.graph.quantize import quantize as to_quantized
from rescompile.graph.shared.names import INPUT, PIXEL_STEP, PIXELS
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors, reading_all_of_int8
from rescompile.progress import Progress

BATCH = 4
"""Images per forward pass: large enough for speed on a CPU, small enough for memory with every activation kept."""

BUILT_IN_ADVICE = (
    "INT8 scales come from the built-in photographs; pass --calibration-set with a few hundred of your own images for "
    "the best accuracy"
)


SMALL = 2_000_000
"""Weights of a network whose rounding is learned within seconds: CIFAR's ResNets up to 110 layers."""

ANY_BACKEND = Int8Support()
"""For a table that is made for no backend in particular: every one of them takes it."""


@dataclass(frozen=True)
class Calibrated:
    """The table, what the weights are made with, and what the user must be told about where the scales come from."""

    table: CalibrationTable
    notes: tuple[str, ...] = ()
    recipe: Recipe = RECIPES["fast"]
    samples: tuple[NDArray[np.float32], ...] = field(default=(), compare=False, repr=False)
    """Preprocessed images [3, H, W] to learn the rounding from; none where it is not learned."""
    comparison: Comparison | None = field(default=None, compare=False, repr=False)
    """Every method on every tensor; None for a table that was read."""
    full_range: FullRange = "costs"
    """As ``Int8Support.full_range``: where it costs, weights that meet inputs of all 256 values stay within 63."""
    exact_pixels: bool = False
    """Whether the first quantizer holds pixels (``graph.pixels``), and not the table's scale of the input."""


def calibration_images(config: CalibrationConfig, source: Source) -> ImageSet:
    """The user's set, or the built-in photographs for an ImageNet network; of either, no more than the limit.

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


def calibrate(
    source: Source, config: CalibrationConfig, progress: Progress, int8: Int8Support = ANY_BACKEND
) -> Calibrated:
    """The table of ``config``: read from its file and checked, or measured on its images, for a backend with ``int8``.

    The table is the same with and without exact pixels.

    Raises:
        TableError: the table is damaged or was made for another checkpoint, preprocessing or graph.
        UsageError, ImageSetError: as ``calibration_images``.
        CalibrationError: activations that are not finite.
    """
    tensors, exact = quantized_tensors(source.graph), can_be_exact(source.preprocess)
    if config.table is not None:
        table = read_table(config.table)
        table.check(checkpoint_sha256=source.checkpoint.sha256, preprocess=source.preprocess, tensors=tensors)
        table = table if config.method is None else table.with_method(config.method)
        _require_range(table, full_range_tensors(source.graph, widest=_widest(int8, asked=True)))
        return Calibrated(
            table, recipe=_recipe_of(table, config), full_range=int8.full_range, exact_pixels=exact
        )
    images = calibration_images(config, source)
    risks = weight_risks(source.graph)
    recipe = _recipe_for(source, config, hard=bool(risks))
    widest = _widest(int8, asked=bool(config.full_range))
    wide = full_range_tensors(source.graph, widest=widest) if int8.full_range in recipe.full_range else []
    levels = dict.fromkeys(wide, FULL_LEVELS)
    seen = collect_statistics(
        source.graph,
        tensors,
        (normalize(batch.images, source.preprocess) for batch in images.batches(source.preprocess, BATCH)),
        StatisticsRequest(
            channels=recipe.needs_channels,
            gradients=recipe.needs_gradients,
            equalize=recipe.equalize,
            samples=LEARNING_IMAGES if recipe.rounding == "learned" else 0,
            levels=levels,
        ),
        count=len(images),
        progress=progress.advanced,
    )
    table = make_table(
        seen.histograms,
        recipe.method,
        model=source.name,
        checkpoint_sha256=source.checkpoint.sha256,
        images=images,
        preprocess=source.preprocess,
        logit=seen.logit,
        means=seen.means,
        factors=seen.factors,
        levels=levels,
        first=seen.first,
    )
    advice: tuple[str, ...] = (BUILT_IN_ADVICE,) if config.images is None else ()
    if config.full_range:
        advice += (note_on_full_range(len(wide), len(tensors)),)
    found = notes_on_risks((*risks, *seen.risks), recipe)
    thresholds = {name: entry.thresholds for name, entry in table.tensors.items()}
    return Calibrated(
        table,
        (*advice, *notes_on_skipped(images), *found),
        recipe,
        seen.samples,
        compare_methods(
            seen.histograms, thresholds, seen.noise, seen.factors, exact=(INPUT,) if exact else ()
        ),
        int8.full_range,
        exact,
    )


def _widest(int8: Int8Support, *, asked: bool) -> int:
    """The most channels of a padded tensor of full range: where constant ones cost nothing, or the user asked."""
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


def original_of(source: Source, calibrated: Calibrated) -> onnx.ModelProto:
    """The fp32 graph that ``quantize`` starts from, whose blocks can stand in for those of the quantized one.

    Its weights are equalized and its first convolution reads pixels, where that is so in the quantized one.
    """
    factors = calibrated.table.factors()
    graph = equalize(source.graph, factors) if factors else source.graph
    return read_pixels(graph, source.preprocess) if calibrated.exact_pixels else graph


def quantize(source: Source, calibrated: Calibrated, progress: Progress) -> onnx.ModelProto:
    """The network of ``source`` with Q/DQ by the table, equalized where it has factors, weights by the recipe.

    Raises:
        GraphError: a tensor without a scale, or factors that do not belong to this network.
    """
    table, recipe = calibrated.table, calibrated.recipe
    factors, scales = table.factors(), table.scales()
    means = {name: mean / factors.get(name, np.float32(1)) for name, mean in table.means().items()}
    graph = original_of(source, calibrated)
    if calibrated.exact_pixels:
        scales[PIXELS] = PIXEL_STEP
        if INPUT in means:
            factor, offset = to_pixels(source.preprocess)
            means[PIXELS] = (factor * means[INPUT] + offset).astype(np.float32)
    full_range = [name for name, levels in table.levels().items() if levels == FULL_LEVELS]
    narrow = reading_all_of_int8(graph, full_range) if calibrated.full_range == "costs" else ()
    if recipe.rounding == "learned":
        nearest = to_quantized(graph, scales, full_range=full_range)
        learned = learn_rounding(
            graph, nearest, calibrated.samples, means, narrow=narrow, progress=progress.advanced
        )
    else:
        input_to_pixels = to_pixels(source.preprocess) if calibrated.exact_pixels else None
        learned = learned_first(graph, table, narrow, input_to_pixels)
    return to_quantized(
        graph,
        scales,
        weight_method=recipe.weight_scales,
        means=means if recipe.bias_correction else None,
        learned=learned,
        full_range=full_range,
    )


def _recipe_of(table: CalibrationTable, config: CalibrationConfig) -> Recipe:
    """What a table was made with, as far as weights are concerned, and what the user changes of that."""
    made = RECIPES["balanced" if table.means() else "fast"]
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
    """The methods of the effort, and learned rounding where it takes seconds, or where weights are hard to round.

    A choice of the user's stands: of a rounding, and against hard weights of an effort, too.
    """
    soon = config.effort != "fast" and _weights_of(source) <= SMALL
    wanted = config.rounding is None and (soon or (hard and config.effort is None))
    return replace(config.recipe, rounding="learned") if wanted else config.recipe


def _weights_of(source: Source) -> int:
    return sum(math.prod(tensor.dims) for tensor in source.graph.graph.initializer)


def note_on_full_range(wide: int, tensors: int) -> str:
    """What ``--full-range`` has led to."""
    if not wide:
        return "--full-range changes nothing: in no tensor of this network does the backend take all 256 values of int8"
    return f"{wide} of {tensors} quantized tensors use all 256 values of int8"


def notes_on_risks(risks: tuple[Risk, ...], recipe: Recipe) -> tuple[str, ...]:
    """What was found, and what was done or can be done about it."""
    remedies = {
        "heavy-tailed weights": "they are rounded against each other (--rounding learned)"
        if recipe.rounding == "learned"
        else "--effort best rounds them against each other",
        "outlier activations": "channels are equalized"
        if recipe.equalize
        else "--effort balanced equalizes channels",
        "dead channels": "they cost time and no accuracy; pruning them would make the network faster",
    }
    return tuple(f"{entry.sentence}; {remedies[entry.kind]}" for entry in risks)


def notes_on_skipped(images: ImageSet) -> tuple[str, ...]:
    """The names of unreadable images that were left out, where there are any."""
    if not images.skipped:
        return ()
    named = ", ".join(images.skipped[:5]) + (", …" if len(images.skipped) > 5 else "")
    return (f"{len(images.skipped)} unreadable images of {images.source} were left out: {named}",)

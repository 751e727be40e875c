"""The quantized graph, made of the fp32 graph and the calibration table."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.errors import TableError
from calibration.memory import free_memory
from calibration.methods.rounding import LearnedWeight, learn_first, learn_rounding
from calibration.network import groups_of, read_nodes
from calibration.scales import FULL_LEVELS, LEVELS, NARROW_LEVELS
from calibration.table import CalibrationTable
from rescompile.building.calibrate import Calibrated
from rescompile.building.rewrites import check_rewrite
from rescompile.building.source import Source
from rescompile.graph.equalize import equalize
from rescompile.graph.pixels import read_pixels, to_pixels
from rescompile.graph.quantize import quantize as insert_quantizers
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.metadata import float_reasons
from rescompile.graph.shared.names import INPUT, PIXEL_STEP, PIXELS
from rescompile.graph.shared.topology import reading_all_of_int8, scale_sources
from rescompile.progress import Progress

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Factor and offset of every channel."""


def original_of(source: Source, calibrated: Calibrated) -> onnx.ModelProto:
    """The fp32 graph that ``quantize`` starts from, whose blocks can replace those of the quantized one.

    Its weights are equalized and its first convolution reads pixels, where that is so in the quantized one.
    """
    factors = calibrated.table.factors()
    graph = equalize(source.graph, factors) if factors else source.graph
    return read_pixels(graph, source.preprocess) if calibrated.exact_pixels else graph


def quantize(
    source: Source,
    calibrated: Calibrated,
    progress: Progress,
    *,
    levels: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """The network with Q/DQ by the table, equalized where the table has factors, weights by the recipe.

    ``levels`` has the largest integer of a node's weights, where learned rounding is to stay below that.

    Raises:
        GraphError: a tensor without a scale, or factors that do not belong to this network.
    """
    table, recipe = calibrated.table, calibrated.recipe
    factors, scales = table.factors(), table.scales()
    means = {name: mean / factors.get(name, np.float32(1)) for name, mean in table.means().items()}
    rewritten = original_of(source, calibrated)
    free_memory()  # before and after the sessions of the check
    graph = check_rewrite(source.graph, rewritten, "weights were rewritten for INT8", source.trial_answers)
    free_memory()
    input_to_pixels = to_pixels(source.preprocess) if calibrated.exact_pixels else None
    if input_to_pixels is not None:
        scales[PIXELS] = PIXEL_STEP
        if INPUT in means:
            factor, offset = input_to_pixels
            means[PIXELS] = (factor * means[INPUT] + offset).astype(np.float32)
    full_range = _full_range_tensors(source, table)
    narrow = _narrow_nodes(source, calibrated, full_range)
    trained = recipe.weight_scales == "trained"
    if recipe.rounding == "learned":
        nearest = insert_quantizers(graph, scales, full_range=full_range)
        largest = {**dict.fromkeys(narrow, NARROW_LEVELS), **(levels or {})}
        learned = learn_rounding(
            graph, nearest, calibrated.samples, means, levels=largest, progress=progress.advanced
        )
    else:
        learned = learned_first(graph, table, narrow, input_to_pixels)
    return insert_quantizers(
        graph,
        scales,
        weight_method="mse" if recipe.weight_scales == "mse" else "max",
        weight_steps=table.trained_weight_scales() if trained else None,
        means=means if recipe.bias_correction else None,
        learned=learned,
        full_range=full_range,
        narrow=[name for name in grouped_nodes(graph) if name in narrow],
    )


def narrow_nodes(source: Source, calibrated: Calibrated) -> list[str]:
    """Nodes whose weights stay within ``NARROW_LEVELS`` where their rounding is learned, for the backend's sake."""
    return _narrow_nodes(source, calibrated, _full_range_tensors(source, calibrated.table))


def _narrow_nodes(source: Source, calibrated: Calibrated, full_range: Collection[str]) -> list[str]:
    return reading_all_of_int8(source.graph, full_range) if calibrated.full_range == "costs" else []


def _full_range_tensors(source: Source, table: CalibrationTable) -> list[str]:
    """Tensors that store zero as -128: so does one that has the scale of another such tensor."""
    sources, levels = scale_sources(read(source.graph)), table.levels()
    return [name for name in levels if levels[sources.get(name, name)] == FULL_LEVELS]


def grouped_nodes(graph: onnx.ModelProto) -> list[str]:
    """Grouped convolutions of ``graph``: OpenVINO takes their inputs of all 256 values with narrow weights alone."""
    return [node.name for node in read_nodes(graph) if groups_of(node) > 1]


def learned_first(
    graph: onnx.ModelProto, table: CalibrationTable, narrow: Collection[str], to_pixels: Affine | None = None
) -> dict[str, LearnedWeight]:
    """New weights of the first convolution by its name, rounded against its pixels; none without moments.

    Rounded to the nearest, its weights cost as much accuracy in seven bits as those of all other layers together.

    Args:
        graph: folded fp32 graph, canonically named.
        table: with the moments of what the convolution reads in the network itself.
        narrow: nodes whose weights stay within ``NARROW_LEVELS``.
        to_pixels: how ``graph`` turns that into what its convolution reads, which is quantized without error.

    Raises:
        TableError: the table's moments are those of another convolution.
    """
    moments = table.moments()
    if moments is None:
        return {}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    read = graph.graph.input[0].name if to_pixels is None else PIXELS
    node = next(each for each in graph.graph.node if read in each.input)
    if node.name in float_reasons(graph):
        return {}
    weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if moments.shape[1] != weight[0].size:
        raise TableError(
            f"the calibration table's first_moments are of {moments.shape[1]} weights, '{node.name}' has "
            f"{weight[0].size}: calibrate again with this model"
        )
    levels = NARROW_LEVELS if node.name in narrow else LEVELS
    if to_pixels is None:
        step = table.scales()[node.input[0]]
    else:
        moments, step = moments_after(moments, *to_pixels), 0.0
    return {node.name: learn_first(weight, bias, moments, step=step, levels=levels)}


def moments_after(
    moments: NDArray[np.float32], factor: NDArray[np.float64], offset: NDArray[np.float64]
) -> NDArray[np.float32]:
    """``first_moments`` [K + 1, K] once channel c of the tensor is ``factor[c] * x + offset[c]``."""
    taps = moments.shape[1] // len(factor)
    factors, offsets = np.repeat(factor, taps), np.repeat(offset, taps)
    covariance = moments[:-1] * np.outer(factors, factors)
    changed: NDArray[np.float32] = np.vstack([covariance, moments[-1] * factors + offsets]).astype(np.float32)
    return changed

"""The first convolution, rounded against its pixels, of which every table knows enough.

In seven bits its weights cost as much as those of all other layers together when they are rounded to the nearest.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import TableError
from calibration.methods.rounding import LearnedWeight, learn_first
from calibration.scales import LEVELS, NARROW_LEVELS
from calibration.table import CalibrationTable
from rescompile.graph.shared.links import WEIGHTED_OPS

if TYPE_CHECKING:
    import onnx

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Factor and offset of every channel."""


def learned_first(
    graph: onnx.ModelProto, table: CalibrationTable, narrow: Collection[str], to_pixels: Affine | None = None
) -> dict[str, LearnedWeight]:
    """New weights of the first convolution of fp32 ``graph`` by its name; none where the table has no moments.

    Args:
        graph: folded and canonically named.
        table: with the moments of what the convolution reads in the network itself.
        narrow: nodes whose weights stay within ``NARROW_LEVELS``.
        to_pixels: how ``graph`` turns that into what its convolution reads, which is quantized without error.

    Raises:
        TableError: the table's moments are those of another convolution.
    """
    from onnx import numpy_helper

    moments = table.moments()
    if moments is None:
        return {}
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    node = next(each for each in graph.graph.node if each.op_type in WEIGHTED_OPS)
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

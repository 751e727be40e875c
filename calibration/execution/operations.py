"""The operations by ONNX operator."""

from __future__ import annotations

from calibration.execution.arithmetic import ARITHMETIC
from calibration.execution.attributes import Operation
from calibration.execution.conversion import CONVERSIONS
from calibration.execution.movement import MOVEMENT
from calibration.execution.normalization import NORMALIZATIONS
from calibration.execution.pooling import POOLING
from calibration.execution.resizing import RESIZING
from calibration.execution.weights import WEIGHTS

OPERATIONS: dict[str, Operation] = {
    **WEIGHTS,
    **NORMALIZATIONS,
    **POOLING,
    **RESIZING,
    **MOVEMENT,
    **ARITHMETIC,
    **CONVERSIONS,
}
"""Functions by ONNX operator."""

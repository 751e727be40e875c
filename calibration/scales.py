"""Scales from ranges, and 8-bit integers from numbers: symmetric, zero point 0.

    q = clamp(round_half_even(x / scale), -128, 127),   scale = amax / 127,   x ~ q * scale

A scale is rounded up to a number that FP16 holds exactly, so that an FP32 graph and a graph typed FP16 mean the
same grid; up, because rounding down would clip amax. The smallest is 2**-24, FP16's smallest positive number,
so a dead tensor or channel keeps a valid, positive scale.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.errors import CalibrationError

LEVELS = 127
"""Largest integer of the symmetric grid; -128 is reached by saturation only."""
FULL_LEVELS = 255
"""Steps from -128 to 127, for a tensor that cannot be negative and whose zero is stored as -128."""
NARROW_LEVELS = 63
"""Largest integer of weights of which two, times 255 each, must add up within 16 bits."""

MIN_SCALE = 2.0**-24
MAX_SCALE = 65504.0

_COARSE = tuple(2.0 ** (-step / 24) for step in range(1, 24))
_FINE = tuple(2.0 ** (step / 72) for step in (-2, -1, 1, 2))
_CHUNK = 1 << 16  # weights whose temporaries stay in the second-level cache
_THREADS = 2


def scales_of(amax: ArrayLike, levels: int = LEVELS) -> NDArray[np.float32]:
    """Scale of each largest magnitude, which is ``levels`` steps; same shape, every value exact in FP16.

    Raises:
        CalibrationError: a magnitude is negative, NaN, or too large for an FP16 scale.
    """
    exact = np.asarray(amax, np.float64) / levels
    good = (exact >= 0) & (exact <= MAX_SCALE)
    if not np.all(good):
        raise CalibrationError(
            f"a range of {exact[~good].flat[0] * levels:g} has no 8-bit scale that FP16 can hold (largest range "
            f"{MAX_SCALE * levels:.0f}): check the weights, or calibrate with a clipping method such as mse"
        )
    half = exact.astype(np.float16)
    with np.errstate(over="ignore"):  # the successor of the largest scale is computed, and not taken
        rounded_up = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
    return np.maximum(rounded_up.astype(np.float32), np.float32(MIN_SCALE))


def scale_of(amax: float, levels: int = LEVELS) -> float:
    """Scale of one largest magnitude; see ``scales_of``."""
    return float(scales_of(amax, levels))


def quantize(x: ArrayLike, scale: ArrayLike) -> NDArray[np.int8]:
    """Integers of ``x``; ``scale`` is a number, or [K] for the first axis of ``x``. NaN raises ``CalibrationError``."""
    values = np.asarray(x, np.float32)
    steps = values / _along_first_axis(scale, values.ndim)
    if np.isnan(steps).any():
        raise CalibrationError("NaN cannot be quantized: check the weights for NaN")
    integers: NDArray[np.int8] = np.clip(np.rint(steps), -128, 127).astype(np.int8)
    return integers


def dequantize(q: NDArray[np.int8], scale: ArrayLike) -> NDArray[np.float32]:
    """float32 values of the integers ``q``; ``scale`` as in ``quantize``."""
    return q.astype(np.float32) * _along_first_axis(scale, q.ndim)


def _along_first_axis(scale: ArrayLike, ndim: int) -> NDArray[np.float32]:
    array = np.asarray(scale, np.float32)
    return array.reshape(-1, *[1] * (ndim - 1)) if array.ndim else array


def channel_scales(weight: NDArray[np.float32], levels: int = LEVELS) -> NDArray[np.float32]:
    """Scale [K] of each output channel of ``weight`` [K, ...], whose largest magnitude is ``levels`` steps.

    Raises:
        CalibrationError: the weights hold NaN or infinity, or a channel is too large for an FP16 scale.
    """
    return scales_of(_amax(_rows(weight)), levels)


def weight_scales(weight: NDArray[np.float32], method: Literal["max", "mse"] = "max") -> NDArray[np.float32]:
    """Scale [K] of each output channel of ``weight`` [K, ...], by its largest magnitude or by least squared error.

    ``mse`` searches the clipping threshold of least squared error between half of each channel's amax and a little
    more than all of it: with n weights and one outlier a the best one is about a * (1 - n / 193548). Raises the errors
    of ``channel_scales``.
    """
    if method == "max":
        return channel_scales(weight)
    rows = _rows(weight)
    amax = _amax(rows)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate(list(pool.map(lambda part: _least_squares(rows[part], amax[part]), parts)))


def _rows(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(weight, np.float32).reshape(weight.shape[0], -1)


def _amax(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest magnitude [K] of each of ``rows`` [K, N]."""
    amax: NDArray[np.float32] = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not np.isfinite(amax).all():
        channel = int(np.flatnonzero(~np.isfinite(amax))[0])
        raise CalibrationError(
            f"output channel {channel} of a weight holds NaN or infinity: check the checkpoint"
        )
    return amax


def _least_squares(rows: NDArray[np.float32], amax: NDArray[np.float32]) -> NDArray[np.float32]:
    best = scales_of(amax)
    least = _squared_error(rows, best)
    for factors in (_COARSE, _FINE):
        centre = amax if factors is _COARSE else best * LEVELS
        for factor in factors:
            candidate = scales_of(centre * np.float32(factor))
            error = _squared_error(rows, candidate)
            better = error < least
            best, least = np.where(better, candidate, best), np.where(better, error, least)
    return best


def _squared_error(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = rows / scales[:, None]
    rounded = np.rint(steps)
    np.clip(rounded, -LEVELS, LEVELS, out=rounded)
    np.subtract(steps, rounded, out=steps)
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", steps, steps)
    return squares * scales * scales

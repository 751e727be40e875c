"""The highest rates of this machine, with which other figures are compared.

Memory is measured by copies, one thread for each core, once far larger than any cache and once within the last-level
cache. Arithmetic is measured by the engines' own kind of work, a 3x3 convolution of 256 channels run by OpenVINO, in
FP32 and INT8. A floor is the time that some work needs at these rates, for its operations or its bytes, whichever is
longer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from calibration.cores import available_cores
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.compile import compile_model

_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_ASSUMED_CACHE = 8 * 2**20
_CHANNELS, _SIDE = 256, 28


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """Rates by the second. Bytes read and written both count; a multiplication and its addition are two operations."""

    memory_bytes_per_second: float
    cache_bytes_per_second: float
    cache_bytes: int
    """Size of the last-level cache; work that moves less than half of it is assumed to stay there."""
    float_ops_per_second: float
    int8_ops_per_second: float
    threads: int

    def bandwidth(self, moved: float) -> float:
        """The rate for work that moves ``moved`` bytes."""
        return self.cache_bytes_per_second if moved < self.cache_bytes / 2 else self.memory_bytes_per_second

    def memory_ms(self, moved: float) -> float:
        """Milliseconds that ``moved`` bytes need."""
        return 1e3 * moved / self.bandwidth(moved)

    def arithmetic_ms(self, float_ops: float, int8_ops: float) -> float:
        """Milliseconds that the operations need."""
        return 1e3 * (float_ops / self.float_ops_per_second + int8_ops / self.int8_ops_per_second)

    def floor_ms(self, float_ops: float, int8_ops: float, moved: float) -> float:
        """Whichever of the two is longer."""
        return max(self.memory_ms(moved), self.arithmetic_ms(float_ops, int8_ops))


def measure_roofline(*, threads: int | None = None, quick: bool = False) -> Roofline:
    """Measure this machine; about three seconds.

    Args:
        threads: cores to use; None takes all that this process may use.
        quick: small work, for tests of the code; the rates are inaccurate.
    """
    cores = threads or available_cores()
    cache = last_level_cache()
    batch, seconds = (1, 0.02) if quick else (4, 0.4)
    return Roofline(
        memory_bytes_per_second=_copy_rate(2**22 if quick else 2**28, cores, seconds),
        cache_bytes_per_second=_copy_rate(min(cache // 4, 2**23), cores, seconds),
        cache_bytes=cache,
        float_ops_per_second=_convolution_rate(batch, cores, seconds, int8=False),
        int8_ops_per_second=_convolution_rate(batch, cores, seconds, int8=True),
        threads=cores,
    )


def last_level_cache(folder: Path = _CACHE) -> int:
    """Bytes of the largest cache of the first core; 8 MiB where that is unknown."""
    found = []
    for path in folder.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM])", path.read_text().strip())
        if match:
            found.append(int(match[1]) * {"K": 2**10, "M": 2**20}[match[2]])
    return max(found, default=_ASSUMED_CACHE)


def _copy_rate(total: int, threads: int, seconds: float) -> float:
    """Bytes a second of copying ``total`` bytes, shared among ``threads``; the best of several copies."""
    pairs = [(np.ones(total // threads // 8), np.empty(total // threads // 8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

        moved = 2 * sum(source.nbytes for source, _ in pairs)
        return moved / _best(copy, seconds)


def _convolution_rate(batch: int, threads: int, seconds: float, *, int8: bool) -> float:
    """Operations a second of a 3x3 convolution as engines run it."""
    compiled = compile_model(_convolutions(int8=int8), RunOptions(threads=threads), tuned=False)
    request = compiled.create_infer_request()
    images = np.random.default_rng(0).random((batch, _CHANNELS, _SIDE, _SIDE), np.float32)
    ops = _LAYERS * 2 * 9 * _CHANNELS**2 * batch * _SIDE**2
    return ops / _best(lambda: request.infer([images], share_inputs=True), seconds)


_LAYERS = 4
"""Convolutions in a row, so that reading and quantizing the input is a small part."""


def _convolutions(*, int8: bool) -> Any:
    """A model of 3x3 convolutions whose activations are uint8 within 0..127 or FP32."""
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    given = ops.parameter([-1, _CHANNELS, _SIDE, _SIDE], np.float32)
    x = given
    for _ in range(_LAYERS):
        shape = (_CHANNELS, _CHANNELS, 3, 3)
        if int8:
            x = ops.fake_quantize(x, np.float32(0), np.float32(1), np.float32(0), np.float32(1), 256)
            levels = ops.constant(rng.integers(-64, 64, shape, dtype=np.int8))
            w = ops.multiply(ops.convert(levels, np.float32), np.full((_CHANNELS, 1, 1, 1), 1e-3, np.float32))
        else:
            w = ops.constant(rng.normal(0, 0.02, shape).astype(np.float32))
        x = ops.relu(ops.convolution(x, w, [1, 1], [1, 1], [1, 1], [1, 1]))
    return ov.Model([x], [given])


def _best(call: Callable[[], Any], seconds: float) -> float:
    """The shortest of the runs that fit into ``seconds``, of which there are at least three."""
    call()
    best, began, runs = float("inf"), time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best

"""Preprocessing in C++ gives the bits of Pillow and NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.errors import ImageSetError
from calibration.preprocess import Preprocess, normalize, to_uint8
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import read_manifest
from tests.cpp.native import Library, NativeEngine, NativeError

pytestmark = pytest.mark.slow

CROP = 32
Load = Callable[[Preprocess], NativeEngine]


@pytest.fixture(scope="module")
def load(library: Library, engines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Load:
    """An engine of another preprocessing; one each, since hypothesis asks for many."""
    folder, loaded = tmp_path_factory.mktemp("preprocess"), dict[Preprocess, NativeEngine]()

    def load(steps: Preprocess) -> NativeEngine:
        if steps not in loaded:
            target = folder / str(len(loaded))
            shutil.copytree(engines["int8"], target)
            write_hashed_manifest(target, msgspec.structs.replace(read_manifest(target), preprocess=steps))
            loaded[steps] = library.load(target, skip_verification=1, threads=1)
        return loaded[steps]

    return load


def steps(**changes: Any) -> Preprocess:
    plain = {"resize": 37, "crop": CROP, "interpolation": "bilinear", "color": "RGB"}
    return Preprocess(**(plain | changes), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pixels(width: int, height: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.sampled_from([None, 32, 37, 64]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    color=st.sampled_from(["RGB", "BGR"]),
    seed=st.integers(0, 9),
)
def test_numbers_are_pillows_to_the_bit(
    load: Load, width: int, height: int, resize: int | None, interpolation: str, color: str, seed: int
) -> None:
    made = steps(resize=resize, interpolation=interpolation, color=color)
    given = pixels(width, height, seed)
    if resize is None and min(width, height) < CROP:
        with pytest.raises(NativeError, match=f"{width}x{height}, smaller than the 32x32 crop"):
            load(made).preprocess(given)
        return
    expected = normalize(to_uint8(given, made)[None], made)
    np.testing.assert_array_equal(load(made).preprocess(given).view(np.uint32), expected.view(np.uint32))


# the order of the passes shows in the rounding: rows come first where more than twice as many of them go
@pytest.mark.parametrize(
    "size", [(38, 2000), (2000, 38), (80, 123), (80, 124), (37, 91), (31, 33), (64, 64), (1, 900)]
)
def test_tall_and_wide_images_are_pillows(load: Load, size: tuple[int, int]) -> None:
    for interpolation in ("nearest", "bilinear", "bicubic"):
        made = steps(interpolation=interpolation)
        expected = normalize(to_uint8(pixels(*size), made)[None], made)
        np.testing.assert_array_equal(load(made).preprocess(pixels(*size)), expected)


def test_smooth_images_reach_both_ends_of_the_range(load: Load) -> None:
    edges = np.kron(np.indices((9, 11)).sum(axis=0) % 2, np.ones((8, 8)))[..., None].repeat(3, axis=2)
    made = steps(interpolation="bicubic", resize=64)  # overshoots at edges, and is clipped
    expected = normalize(to_uint8((edges * 255).astype(np.uint8), made)[None], made)
    np.testing.assert_array_equal(load(made).preprocess((edges * 255).astype(np.uint8)), expected)


def test_pixels_are_pillows(library: Library, engines: dict[str, Path]) -> None:
    native, made = library.load(engines["pixels"]), read_manifest(engines["pixels"]).preprocess
    given = pixels(41, 33)
    np.testing.assert_array_equal(native.preprocess(given)[0], to_uint8(given, made))


def test_what_cannot_be_resized_is_refused_alike(load: Load) -> None:
    made = steps(resize=8192)
    given = pixels(1, 40)
    with pytest.raises(ImageSetError) as wanted:
        to_uint8(pixels(1, 4000), made)
    with pytest.raises(NativeError) as refused:
        load(made).preprocess(pixels(1, 4000))
    assert str(refused.value) == str(wanted.value)
    with pytest.raises(NativeError, match="0x40, it must have 1 to 134217728 pixels"):
        load(made).preprocess(given[:, :0])

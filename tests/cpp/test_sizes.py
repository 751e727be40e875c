"""Engines for a range of sizes: C++ gives Python's answers at each, to the bit, and refuses the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rescompile
from rescompile.manifest import read_manifest
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from tests.cpp.building import run
from tests.cpp.hostile import Fields, changed
from tests.cpp.native import Library, NativeError

pytestmark = pytest.mark.slow

SIZES = ((24, 24), (48, 48), (24, 48), (33, 41))


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """INT8 engines of 24 to 48 pixels: a classifier of bytes with batches of 2 alone, and a backbone."""
    folder = tmp_path_factory.mktemp("dynamic")
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), 10, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    common: dict[str, Any] = {
        "calibration": pixels, "size": 32, "dynamic_size": "24:48", "effort": "fast", "backend": "openvino",
        "limits": rescompile.Limits(max_relative_rms=0.5),
    }  # fmt: skip
    rescompile.build(model, **common, batch="2", input_format="uint8-nhwc", output=folder / "bytes")
    rescompile.build(model, **common, batch="1:2:4", outputs=("c2", "c4"), output=folder / "maps")
    return {path.name: path for path in folder.iterdir()}


def images(directory: Path, size: tuple[int, int], count: int) -> np.ndarray:
    fed = read_manifest(directory).inputs[0]
    pixels = np.random.default_rng(1).integers(0, 256, (count, *fed.of_size(size)), np.uint8)
    return pixels if fed.dtype == "uint8" else (pixels / np.float32(128) - 1).astype(np.float32)


@pytest.mark.parametrize("name", ["bytes", "maps"])
def test_answers_are_pythons_to_the_bit_at_every_size(
    library: Library, dynamic: dict[str, Path], name: str
) -> None:
    native = library.load(dynamic[name], threads=1)
    options = rescompile.RunOptions(threads=1)
    with rescompile.load(dynamic[name], options=options) as engine:
        for size in (*SIZES, *SIZES):
            given = images(dynamic[name], size, 5)
            expected, found = engine(given), native.infer_at(given, size)
            answers = expected if isinstance(expected, dict) else {"logits": expected}
            assert list(found) == list(answers)
            for output, values in answers.items():
                assert found[output].shape == values.shape
                np.testing.assert_array_equal(found[output].view(np.uint32), values.view(np.uint32))


def test_calls_without_a_size_are_about_the_engines_own(library: Library, dynamic: dict[str, Path]) -> None:
    native, given = library.load(dynamic["bytes"]), images(dynamic["bytes"], (32, 32), 2)
    np.testing.assert_array_equal(native(given), native.infer_at(given, (32, 32))["logits"])
    assert tuple(native.facts.shape) == (32, 32, 3)
    sizes = native.sizes()
    assert (sizes.min_height, sizes.max_width, sizes.own_height) == (24, 48, 32)
    assert [spec.size for spec in library.load(dynamic["maps"]).outputs()] == [16 * 32 * 32, 64 * 8 * 8]


def test_other_sizes_are_refused_in_words(
    library: Library, engines: dict[str, Path], dynamic: dict[str, Path]
) -> None:
    native, fixed = library.load(dynamic["bytes"]), library.load(engines["int8"])
    given = images(dynamic["bytes"], (24, 24), 2)
    with pytest.raises(
        NativeError, match="images are 24x49, but this engine takes sizes from 24x24 to 48x48"
    ):
        native.infer_at(given, (24, 49))
    with pytest.raises(NativeError, match="2 images of this engine of 32x32 are 2 times 3072"):
        native(given)
    with pytest.raises(NativeError, match="but this engine takes 32x32: resize them"):
        fixed.infer_at(given, (24, 24))


def _closed(fields: Fields) -> None:
    fields["sizes"] = None


def _wider(fields: Fields) -> None:
    fields["sizes"]["max"] = [48, 64]


def _turned(fields: Fields) -> None:
    fields["sizes"] = {"min": [48, 48], "max": [24, 24]}


def _wrong(fields: Fields) -> None:
    fields["sizes"]["min"] = [24]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_closed, "has an input whose size is absurd"),
        (_wider, "does not fit the manifest"),
        (_turned, "has sizes of images that do not fit"),
        (_wrong, "`$.sizes.min` must be height and width"),
    ],
)
def test_manifests_that_lie_about_sizes_are_refused(
    library: Library, dynamic: dict[str, Path], tmp_path: Path, change: Callable[[Fields], None], words: str
) -> None:
    run("cp", "-r", dynamic["maps"], tmp_path / "engine")
    changed(change)(tmp_path / "engine")
    with pytest.raises(NativeError) as refused:
        library.load(tmp_path / "engine")
    assert words in str(refused.value)

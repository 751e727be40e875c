"""Preprocessing in C++ gives the bits of Pillow and NumPy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from calibration.errors import ImageSetError
from calibration.preprocess import CHANNELS, Preprocess, normalize, to_uint8
from rescompile.backends import get_backend
from rescompile.backends.base import BuildRequest
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import OutputSpec, TensorSpec, read_manifest
from rescompile.runtime.golden import golden_bytes
from tests.backends.engines import RANGE, manifest
from tests.cpp.native import Library, NativeEngine, NativeError

pytestmark = pytest.mark.slow

CROP = 32
Load = Callable[[Preprocess], NativeEngine]


def averaging_engine(directory: Path, steps: Preprocess) -> None:
    """An engine of any channels and size, whose logits are the means of the channels."""
    (height, width), channels = steps.size, steps.channels
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["means"]),
            helper.make_node("Flatten", ["means"], ["logits"]),
        ],
        "averages",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", channels, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", channels])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    shape = (channels, height, width)
    asked = BuildRequest(
        model=directory / "model.onnx", precision="fp32", batch=RANGE, image_shape=shape, target=None
    )
    get_backend("openvino").build(asked, directory)
    zeros = np.zeros((1, *shape), np.float32)
    (directory / "golden.npz").write_bytes(golden_bytes(zeros, np.zeros((1, channels), np.float32)))
    write_hashed_manifest(
        directory,
        msgspec.structs.replace(
            manifest("fp32", "openvino"),
            inputs=(TensorSpec("images", (-1, *shape), "float32", "NCHW"),),
            outputs=(OutputSpec("logits", (-1, channels), "float32", "NC", kind="values"),),
            preprocess=steps,
        ),
    )


@pytest.fixture(scope="module")
def load(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """An engine of another preprocessing; one each, since hypothesis asks for many."""
    folder, loaded = tmp_path_factory.mktemp("preprocess"), dict[Preprocess, NativeEngine]()

    def load(steps: Preprocess) -> NativeEngine:
        if steps not in loaded:
            target = folder / str(len(loaded))
            averaging_engine(target, steps)
            loaded[steps] = library.load(target, skip_verification=1, threads=1)
        return loaded[steps]

    return load


def steps(**changes: Any) -> Preprocess:
    plain: dict[str, Any] = {"resize": 37, "crop": CROP, "interpolation": "bilinear", "color": "RGB"}
    channels = CHANNELS[changes.get("color", "RGB")]
    numbers = {"mean": (0.485, 0.456, 0.406, 0.1)[:channels], "std": (0.229, 0.224, 0.225, 0.9)[:channels]}
    return Preprocess(**(plain | numbers | changes))


def pixels(width: int, height: int, seed: int = 0, channels: int = 3) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.sampled_from([None, 32, 64, (37, 37), (64, 33)]),
    crop=st.sampled_from([CROP, (20, 31)]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    color=st.sampled_from(["RGB", "BGR", "GRAY", "RGBA"]),
    seed=st.integers(0, 9),
)
def test_numbers_are_pillows_to_the_bit(
    load: Load, width: int, height: int, resize: Any, crop: Any, interpolation: str, color: str, seed: int
) -> None:
    made = steps(resize=resize, crop=crop, interpolation=interpolation, color=color)
    given = pixels(width, height, seed, 4 if color == "RGBA" else 3)
    if resize is None and (height < made.size[0] or width < made.size[1]):
        wanted = f"{width}x{height}, smaller than the {made.size[1]}x{made.size[0]} crop"
        with pytest.raises(NativeError, match=wanted):
            load(made).preprocess(given)
        return
    expected = normalize(to_uint8(given, made)[None], made)
    np.testing.assert_array_equal(load(made).preprocess(given).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
def test_mean_images_are_subtracted_to_the_bit(load: Load, color: str) -> None:
    channels = CHANNELS[color]  # type: ignore[index]
    image = np.random.default_rng(0).uniform(0, 1, (channels, 20, 31)).astype("<f4")
    made = steps(color=color, crop=(20, 31), mean=(0.0,) * channels, mean_image=image.tobytes())
    given = pixels(90, 61)
    expected = normalize(to_uint8(given, made)[None], made)
    np.testing.assert_array_equal(load(made).preprocess(given).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": [8, 0]}, "`$.preprocess.crop` must be a whole number from 1 to 8192, or height and width"),
        ({"crop": None}, "`$.preprocess.crop` must be a whole number"),
        ({"resize": [8, 40, 8]}, "`$.preprocess.resize` must be a whole number"),
        ({"resize": [40, 20]}, "`$.preprocess.resize` must be at least the crop"),
        ({"color": "GRAY"}, "`$.preprocess.mean` must be 1 finite numbers"),
        ({"mean_image": "AAAA"}, "`$.preprocess.mean_image` must be 3072 finite numbers in base64"),
        ({"mean_image": "AAA!" * 4096}, "`$.preprocess.mean_image` must be 3072 finite numbers in base64"),
        ({"mean_image": "AAAA" * 4096}, "`$.preprocess.mean` must be zero beside a mean image"),
        ({"mean_image": 7}, "`$.preprocess.mean_image` must be a text"),
    ],
)
def test_damaged_steps_are_refused(
    library: Library, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    averaging_engine(tmp_path / "engine", steps(resize=None))
    fields = json.loads((tmp_path / "engine/manifest.json").read_text())
    fields["preprocess"] |= changes
    (tmp_path / "engine/manifest.json").write_text(json.dumps(fields))
    with pytest.raises(NativeError, match=re.escape(words)):
        library.load(tmp_path / "engine")


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

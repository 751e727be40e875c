"""An engine directory is what was built or it is refused, and an engine takes what its manifest says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import ImageSetError
from calibration.preprocess import normalize, to_uint8
from rescompile.backends.base import RunOptions
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.errors import EngineError, UsageError
from rescompile.manifest import Batch, OutputSpec, TensorSpec, read_manifest
from rescompile.metrics import relative_rms
from rescompile.runtime.engine import Engine
from rescompile.runtime.golden import golden_bytes
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine, manifest
from tests.backends.graphs import CLASSES, IMAGE_SHAPE, sample_images


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good engine that no test may change."""
    folder = tmp_path_factory.mktemp("built") / "engine"
    make_engine(folder, "int8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good engine, small and quick to make, that a test may damage."""
    make_engine(tmp_path / "engine", backend="onnxruntime")
    return tmp_path / "engine"


@pytest.fixture
def engine(built: Path) -> Iterator[Engine]:
    with load(built) as loaded:
        yield loaded


def resealed(folder: Path, **changes: Any) -> None:
    """The manifest with changed fields and a right digest, as a careless tool would write it."""
    write_hashed_manifest(folder, msgspec.structs.replace(read_manifest(folder), **changes))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_engines_load_and_answer_as_their_graph(tmp_path: Path, precision: Any, backend: str) -> None:
    make_engine(tmp_path / "engine", precision, backend=backend)
    expected = reference_session(tmp_path / "engine" / "model.onnx", optimize=False)(sample_images(3, seed=5))
    with load(str(tmp_path / "engine"), options=RunOptions(threads=1)) as loaded:
        assert relative_rms(expected, loaded(sample_images(3, seed=5))) < 1e-2


@pytest.mark.parametrize("count", [1, 8, 9, 17])
def test_any_number_of_images_may_be_asked(engine: Engine, count: int) -> None:
    images = sample_images(count)
    one_by_one = np.concatenate([engine(image[None]) for image in images])
    found = engine(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one, rtol=1e-4, atol=1e-3)


class Recorder:
    """A runner that notes its batch sizes and answers with the images' means."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.closed = 0

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        self.sizes.append(len(images))
        return np.repeat(images.reshape(len(images), -1).mean(axis=1, keepdims=True), CLASSES, axis=1)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("batch", "count", "sizes"),
    [
        (Batch(1, 4, 8), 8, [8]),
        (Batch(1, 4, 8), 17, [8, 8, 1]),
        (Batch(4, 4, 4), 1, [4]),
        (Batch(4, 4, 4), 9, [4, 4, 4]),
        (Batch(3, 4, 8), 10, [8, 3]),
    ],
)
def test_requests_are_split_and_filled_up(batch: Batch, count: int, sizes: list[int]) -> None:
    runner, images = Recorder(), sample_images(count)
    found = Engine(manifest("fp32", "openvino", batch), runner)(images)
    assert runner.sizes == sizes
    np.testing.assert_allclose(found[:, 0], images.reshape(count, -1).mean(axis=1), rtol=1e-6)


def test_threads_may_share_an_engine(engine: Engine) -> None:
    images = [sample_images(4, seed=seed) for seed in range(6)]
    expected = [engine(each) for each in images]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(engine, images), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            np.zeros(IMAGE_SHAPE, np.float32),
            r"float32 \[3, 16, 16\].*add the batch dimension with images\[None\]",
        ),
        (np.zeros((2, 16, 16, 3), np.float32), r"images\.transpose\(0, 3, 1, 2\)"),
        (np.zeros((2, 3, 15, 16), np.float32), r"takes float32 \[N, 3, 16, 16\] \(NCHW\); make them"),
        (np.zeros((2, 3, 16, 16)), r"float64.*images\.astype\(np\.float32\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), "uint8"),
        (np.zeros((0, 3, 16, 16), np.float32), "there are no images"),
        (np.float32(1), "numpy.float32; pass a NumPy array"),
        ([[1.0]], r"builtins\.list; pass a NumPy array float32"),
    ],
)
def test_images_that_do_not_fit_are_told_how_to(engine: Engine, images: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        engine(images)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused_unless_that_is_asked(built: Path, value: float) -> None:
    images = sample_images(3)
    images[2, 1, 4, 5] = value
    with load(built) as engine, pytest.raises(UsageError, match=r"image 2 .* NaN or infinite"):
        engine(images)
    with load(built, options=RunOptions(check_finite=False)) as engine:
        assert engine(images).shape[0] == 3


def test_large_images_are_not_taken_for_infinite_ones(engine: Engine) -> None:
    images = np.full_like(sample_images(2), 3e38)
    assert len(engine(images)) == 2


def test_pixels_given_as_planes_are_told_the_layout() -> None:
    spec = TensorSpec("images", (-1, 16, 16, 3), "uint8", "NHWC")
    pixels = Engine(msgspec.structs.replace(manifest("fp32", "openvino"), inputs=(spec,)), Recorder())
    with pytest.raises(UsageError, match=r"images\.transpose\(0, 2, 3, 1\)"):
        pixels(np.zeros((1, 3, 16, 16), np.uint8))


def test_a_closed_engine_says_so() -> None:
    runner = Recorder()
    with Engine(manifest("fp32", "openvino"), runner) as loaded:
        loaded.close()
    assert runner.closed == 1
    with pytest.raises(EngineError, match="closed"):
        loaded(sample_images(1))


def photograph() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (20, 24, 3), np.uint8)


def test_a_photograph_is_preprocessed_from_path_image_and_array(engine: Engine, tmp_path: Path) -> None:
    Image.fromarray(photograph()).save(tmp_path / "photo.png")
    steps = engine.manifest.preprocess
    expected = normalize(to_uint8(photograph(), steps)[None], steps)
    for given in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        Image.fromarray(photograph()),
        photograph(),
    ):
        np.testing.assert_array_equal(engine.preprocess(given), expected)


def test_an_engine_for_pixels_gets_pixels() -> None:
    spec = TensorSpec("images", (-1, 16, 16, 3), "uint8", "NHWC")
    pixels = Engine(msgspec.structs.replace(manifest("fp32", "openvino"), inputs=(spec,)), Recorder())
    made = pixels.preprocess(photograph())
    assert made.dtype == np.dtype(np.uint8)
    assert made.shape == (1, 16, 16, 3)


def test_the_best_classes_come_first_and_sum_to_one(engine: Engine) -> None:
    found = engine.classify(photograph(), k=100)
    shares = [share for _, share in found]
    assert len(found) == CLASSES
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    best = int(engine(engine.preprocess(photograph())).argmax())
    assert engine.classify(photograph(), k=1)[0][0] == f"class {best}"


def test_no_class_cannot_be_asked_for(engine: Engine) -> None:
    with pytest.raises(UsageError, match="ask for 1 or more"):
        engine.classify(photograph(), k=0)


def test_a_photograph_that_cannot_be_read_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageSetError, match=r"missing\.png"):
        engine.classify(tmp_path / "missing.png")


def test_every_file_of_a_directory_is_hashed(folder: Path) -> None:
    assert set(read_manifest(folder).files) == {"model.onnx", "golden.npz"}


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_one_flipped_byte_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(EngineError, match=f"{name} was changed after the build"):
        load(folder)


def test_a_cut_file_is_found_even_without_hashing(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"model\.onnx has [\d,]+ bytes instead of [\d,]+"):
        load(folder, verify=False)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(EngineError, match=r"model\.onnx is missing, although the manifest lists it"):
        load(folder)


def test_links_and_folders_are_no_files(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(EngineError, match="is not a regular file"):
        load(folder)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    with pytest.raises(EngineError, match="is not a regular file"):
        load(folder)


def test_a_file_that_may_not_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, folder: int, keep: bool) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("rescompile.runtime.integrity._read_one", refused)
    with pytest.raises(EngineError, match=r"cannot be read \(Permission denied\)"):
        read_engine(folder)


def test_a_stranger_in_the_directory_does_no_harm(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    load(folder).close()


def test_another_machines_wrong_answers_are_noticed(folder: Path) -> None:
    images = sample_images(4)
    logits = reference_session(folder / "model.onnx", optimize=False)(images)
    (folder / "golden.npz").write_bytes(golden_bytes(images, logits * np.float32(1.02)))
    resealed(folder)
    with pytest.raises(EngineError, match=r"does not reproduce its golden.*RMS 0\.0196, allowed 0\.01"):
        load(folder)
    load(folder, verify=False).close()


def test_answers_that_are_not_finite_fail_the_self_test(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Recorder):
        def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
            return np.full((len(images), CLASSES), np.nan, np.float32)

    broken = Broken()
    monkeypatch.setattr("rescompile.backends.onnxruntime.OnnxRuntime.load", lambda *given: broken)
    with pytest.raises(EngineError, match="relative RMS nan"):
        load(folder)
    assert broken.closed == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "tpu"}, "names the backend 'tpu', this rescompile has onnxruntime"),
        ({"inputs": ()}, "not describe a network with one image input"),
        (
            {"outputs": (OutputSpec("logits", (-1, 10), "float32", "NC", labels=("cat",)),)},
            r"kind classes, with 1 names",
        ),
    ],
)
def test_a_manifest_that_describes_no_engine_is_refused(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    resealed(folder, **changes)
    with pytest.raises(EngineError, match=words):
        load(folder)


def test_an_engine_that_cannot_be_tested_is_refused(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    resealed(folder)
    with pytest.raises(EngineError, match=r"does not list golden\.npz"):
        load(folder)


LIGHT = """
import sys
import rescompile
engine = rescompile.load(sys.argv[1])
engine.close()
print([name for name in ("torch", "onnx", "matplotlib", "scipy", "tensorrt_rtx") if name in sys.modules])
"""


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_loading_needs_neither_torch_nor_onnx(tmp_path: Path, backend: str) -> None:
    make_engine(tmp_path / "engine", "int8", backend=backend)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(tmp_path / "engine")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", "[]\n")


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, 1e9])
def test_a_tolerance_at_which_the_self_test_says_nothing_is_refused(folder: Path, tolerance: float) -> None:
    resealed(folder, golden_relative_rms=tolerance)
    with pytest.raises(EngineError, match="its self-test would say nothing"):
        load(folder)

"""Engines of networks that subtract a mean image give the fp32 network's answers, from bytes and from numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rescompile
from calibration.errors import TableError
from calibration.images import open_image_set
from calibration.preprocess import normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.manifest import REFERENCE, Batch, read_manifest
from rescompile.metrics import relative_rms
from rescompile.sources.preprocess_options import PreprocessOptions


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mean") / "mean.npy"
    rows, columns = np.indices((32, 32))
    np.save(path, np.stack([4 * rows + columns, 100 + columns, 160 - 3 * rows], axis=-1).astype(np.float32))
    return path


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("form", ["float32-nchw", "uint8-nhwc"])
def test_a_mean_image_reaches_the_engine(
    small: Path, mean: Path, tmp_path: Path, precision: str, form: str
) -> None:
    report = rescompile.build(
        BuildConfig(
            model=ModelConfig(
                weights=str(small / "net.pth"), preprocess=PreprocessOptions(mean=mean, std=(0.25,))
            ),
            precision=precision,  # type: ignore[arg-type]
            calibration=CalibrationConfig(images=small / "images.npz", effort="fast")
            if precision == "int8"
            else CalibrationConfig(),
            validation_set=small / "images.npz",
            backend="openvino",
            batch=Batch(1, 8, 8),
            input_format=form,  # type: ignore[arg-type]
            output=tmp_path / "engine",
        )
    )
    steps = read_manifest(tmp_path / "engine").preprocess
    (batch,) = open_image_set(small / "images.npz").batches(steps, 24)
    mean_pixels = np.load(mean).transpose(2, 0, 1)
    x = normalize(batch.images, steps)
    # the formula, in pixels
    expected = (batch.images.transpose(0, 3, 1, 2) - mean_pixels) / 255 / 0.25
    assert np.abs(x - expected).max() < 1e-5
    logits = reference_session(tmp_path / "engine" / REFERENCE, optimize=True)(x)
    with rescompile.load(tmp_path / "engine") as engine:
        found = engine(batch.images if form == "uint8-nhwc" else x)
    assert relative_rms(logits, found) < (1e-5 if precision == "fp32" else 0.1)
    assert report.relative_rms < (1e-5 if precision == "fp32" else 0.1)


def test_a_table_of_another_mean_image_is_refused(small: Path, mean: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.load(mean) / 2)
    # without labels, which would not fit a network that is fed with such a mean
    np.savez(tmp_path / "images.npz", images=np.load(small / "images.npz")["images"])

    def build(path: Path, calibration: CalibrationConfig, name: str) -> None:
        model = ModelConfig(weights=str(small / "net.pth"), preprocess=PreprocessOptions(mean=path))
        rescompile.build(
            BuildConfig(model=model, calibration=calibration, backend="openvino", output=tmp_path / name)
        )

    build(mean, CalibrationConfig(images=tmp_path / "images.npz", effort="fast"), "one")
    table = CalibrationConfig(table=tmp_path / "one/calibration.json")
    build(mean, table, "two")
    with pytest.raises(TableError, match="the mean image differs"):
        build(tmp_path / "other.npy", table, "three")

"""Real checkpoints and real images keep the accuracy that the documentation states."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rescompile
from calibration.images import open_image_set
from calibration.preprocess import normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.manifest import GRAPH
from rescompile.report import BuildReport, Limits
from tests.accuracy.damage import with_outlier

pytestmark = pytest.mark.slow

RESNET20 = "weights/resnet20-12fca82f.th"
Build = Callable[..., tuple[Path, BuildReport]]


@pytest.fixture(scope="module")
def imagenet(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a ResNet of ``depth`` for OpenVINO, judged on the first validation images."""
    folder = tmp_path_factory.mktemp("imagenet")

    def build(depth: int, images: int, **changes: object) -> tuple[Path, BuildReport]:
        weights = folder / f"resnet{depth}.pth"
        if not weights.exists():
            packed = real_data / f"weights/resnet{depth}-pqf.pth.xz"
            weights.write_bytes(lzma.decompress(packed.read_bytes()))
        config = BuildConfig(
            model=ModelConfig(depth=depth, weights=str(weights)),
            validation_set=real_data / "imagenet/validation",
            validation_images=images,
            backend="openvino",
            output=folder / f"engine{len(list(folder.iterdir()))}",
        )
        return config.output, rescompile.build(replace(config, **changes))  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="module")
def int8(imagenet: Build, real_data: Path) -> tuple[Path, BuildReport]:
    calibration = CalibrationConfig(images=real_data / "imagenet/calibration", limit=8)
    return imagenet(50, 30, calibration=calibration)


def test_a_cifar_network_keeps_its_published_accuracy(real_data: Path, tmp_path: Path) -> None:
    report = rescompile.build(
        BuildConfig(
            model=ModelConfig(model="resnet20-cifar", weights=str(real_data / RESNET20)),
            calibration=CalibrationConfig(images=real_data / "cifar10/train_10k.npz", limit=128),
            validation_set=real_data / "cifar10/test.npz",
            validation_images=2000,
            limits=Limits(max_top1_drop=0.2, min_agreement=0.985),
            validate="all",
            backend="openvino",
            output=tmp_path / "e",
        )
    )
    assert report.images == 2000
    assert report.top1_reference == 0.914  # of these; 0.9173 of all 10,000, as published
    assert report, report.checks


def test_a_block_with_an_outlier_channel_is_found(real_data: Path, tmp_path: Path) -> None:
    stored = torch.load(real_data / RESNET20, map_location="cpu", weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in stored["state_dict"].items()}
    torch.save(with_outlier(state, "layer2.1", channel=3), tmp_path / "damaged.pth")
    report = rescompile.build(
        BuildConfig(
            model=ModelConfig(model="resnet20-cifar", weights=str(tmp_path / "damaged.pth")),
            calibration=CalibrationConfig(
                images=real_data / "cifar10/train_10k.npz", limit=64, effort="fast"
            ),
            validation_set=real_data / "cifar10/test.npz",
            validation_images=300,
            limits=Limits(max_top1_drop=0.5, min_agreement=0.98),
            backend="openvino",
            output=tmp_path / "e",
        )
    )
    assert report, report.checks
    assert report.fp16_blocks == ("layer2.1",)


def test_resnet50_int8_agrees_with_fp32(int8: tuple[Path, BuildReport]) -> None:
    report = int8[1]
    assert report.images == 30
    assert report.top1_agreement is not None
    assert report.relative_rms is not None
    assert report.top1_agreement >= 0.93  # of 30 images; two may fall on the other side
    assert report.relative_rms <= 0.030
    assert report.fused is not None
    assert (report.fused.fused, report.fused.seen_in) == (16, "engine")


def test_the_built_in_photographs_do_nearly_as_well(imagenet: Build) -> None:
    _, report = imagenet(18, 30, calibration=CalibrationConfig(limit=16))
    assert report.top1_agreement is not None
    assert report.relative_rms is not None
    assert report.top1_agreement >= 0.9
    assert report.relative_rms <= 0.040
    assert any("built-in photographs" in note for note in report.notes)


def test_an_fp16_engine_agrees_with_fp32(imagenet: Build) -> None:
    _, report = imagenet(18, 8, precision="fp16")
    assert report.top1_agreement is not None
    assert report.top1_agreement >= 0.995


def test_openvino_executes_what_the_graph_says(int8: tuple[Path, BuildReport], real_data: Path) -> None:
    """Against ONNX Runtime without optimizations.

    Neither is exact: sums in float32 fall on the other side of a rounding now and then, and every layer behind
    spreads such a step. Changing one bias by three parts in a million moves ONNX Runtime itself as far.
    """
    reference = reference_session(int8[0] / GRAPH, optimize=False)
    images = open_image_set(real_data / "imagenet/validation", limit=10)
    expected, found = [], []
    with rescompile.load(int8[0]) as engine:
        for batch in images.batches(engine.manifest.preprocess, 5):
            x = normalize(batch.images, engine.manifest.preprocess)
            expected.append(reference(x))
            found.append(engine(x))
    a, b = np.concatenate(expected), np.concatenate(found)
    assert (a.argmax(1) == b.argmax(1)).mean() >= 0.96
    assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(a)

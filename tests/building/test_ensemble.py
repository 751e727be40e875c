"""Several networks as one engine: its answers, the accuracy of each member, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rescompile
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.report import read_report
from tests.commands import call

NAMES = ("resnet8-cifar", "resnet14-cifar")


def member(name: str, classes: int = 4) -> nn.Module:
    return random_model(find(depth=None, name=name), classes, 0)[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of two networks, one of other classes, and images whose labels the first network gives; read-only."""
    tmp_path = tmp_path_factory.mktemp("ensemble")
    found = {name: tmp_path / f"{name}.safetensors" for name in NAMES}
    for name, path in found.items():
        save_file(member(name).state_dict(), path)
    found["five"] = tmp_path / "five.safetensors"
    save_file(member("resnet8-cifar", 5).state_dict(), found["five"])
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    normalized = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.inference_mode():
        labels = member("resnet8-cifar")(normalized).argmax(1).numpy()
    found["images"] = tmp_path / "images.npz"
    np.savez(found["images"], images=pixels, labels=labels)
    return found


def arguments(files: dict[str, Path], *more: object) -> list[str]:
    common = (
        "--crop",
        16,
        "--mean",
        0.5,
        "--std",
        0.5,
        "--backend",
        "openvino",
        "--effort",
        "fast",
        "--batch",
        4,
    )
    sets = ("--calibration-set", files["images"], "--validation-set", files["images"])
    return [str(word) for word in ("build", *common, *sets, *more)]


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_one_engine_gives_the_mean_and_the_report_its_members(
    files: dict[str, Path], tmp_path: Path, mean: str
) -> None:
    output = tmp_path / "engine"
    members = ("--ensemble", files["resnet8-cifar"], files["resnet14-cifar"], "--ensemble-mean", mean)
    assert call(*arguments(files, *members, "--output", output)) in (0, 3)
    folder = output if output.is_dir() else output.with_name("engine.failed")
    report = read_report(folder)
    assert report.model == "ensemble-resnet8-cifar-resnet14-cifar"
    first, second = report.members
    assert (first.name, first.checkpoint.source) == ("resnet8-cifar", "resnet8-cifar.safetensors")
    assert first.top1_reference == 1.0  # it gave the labels
    assert second.top1_reference is not None
    assert second.top1_reference < 1.0
    assert first.top1_engine is not None
    assert first.top1_engine > 0.8
    with rescompile.load(folder) as engine, np.load(files["images"]) as images:
        given = np.concatenate([engine.preprocess(image) for image in images["images"][:8]])
        found = engine(given)
        share = engine.classify(images["images"][0], 1)[0][1]
    with torch.inference_mode():
        logits = [member(name)(torch.from_numpy(given)) for name in NAMES]
    stacked = torch.stack(logits)
    expected = stacked.mean(0) if mean == "logits" else stacked.softmax(2).mean(0).log()
    error = np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy())
    assert error < 0.15
    assert share == pytest.approx(float(expected.softmax(1)[0].max()), abs=0.1)


def test_python_takes_modules_and_files(files: dict[str, Path], tmp_path: Path) -> None:
    common = {"precision": "fp32", "backend": "openvino", "size": 16, "ensemble_mean": "logits"}
    modules = [member(name) for name in NAMES]
    rescompile.build(modules, **common, output=tmp_path / "modules")  # type: ignore[arg-type]
    rescompile.build([files[name] for name in NAMES], **common, output=tmp_path / "files")  # type: ignore[arg-type]
    images = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        expected = sum(module(torch.from_numpy(images)) for module in modules) / 2
    for name in ("modules", "files"):
        with rescompile.load(tmp_path / name) as engine:
            np.testing.assert_allclose(engine(images), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--ensemble", "resnet8-cifar"), "needs two networks or more"),
        (("--ensemble", "resnet8-cifar", "five"), "gives [5], not [4] as resnet8-cifar.safetensors"),
        (("--ensemble", "resnet8-cifar", "resnet8-cifar"), "is listed twice"),
        (("--ensemble", "resnet8-cifar", "gone.th"), "gone.th does not exist"),
        (("--ensemble", "resnet8-cifar", "five", "--depth", "50"), "leave --depth out"),
        (("--ensemble", "resnet8-cifar", "five", "--weights", "x.th"), "leave --weights out"),
        (("--ensemble", "resnet8-cifar", "five", "--outputs", "c2"), "leave --outputs out"),
        (("--weights", "resnet8-cifar", "five"), "pass several networks as --ensemble A B"),
        (("--ensemble", "resnet8-cifar", "resnet9"), "no ResNet of depth 9"),
    ],
)
def test_what_cannot_be_averaged_is_one_sentence(
    files: dict[str, Path],
    tmp_path: Path,
    words: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [files.get(word, word) for word in words]
    code = call(*arguments(files, *given, "--output", tmp_path / "engine"))
    said = capsys.readouterr().err
    assert code in (1, 2), said
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "engine").exists()

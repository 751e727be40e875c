"""The papers' networks by name: their sizes, their functions, and that they become engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import rescompile
from rescompile.errors import CheckpointError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import create, find, with_options
from rescompile.models.resnet import Bottleneck, ResNet
from rescompile.models.specification import ModelSpec
from rescompile.sources.checkpoint import build_model, load_checkpoint


def spec_of(name: str, **options: str) -> ModelSpec:
    return with_options(find(depth=None, name=name), **options)  # type: ignore[arg-type]


def parameters(name: str, classes: int = 10, **options: str) -> int:
    with torch.device("meta"):
        return sum(part.numel() for part in create(spec_of(name, **options), classes).parameters())


# millions, as the papers round them
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20-cifar", "0.27"),
        ("resnet32-cifar", "0.46"),
        ("resnet44-cifar", "0.66"),
        ("resnet56-cifar", "0.85"),
        ("resnet110-cifar", "1.7"),
        ("resnet1202-cifar", "19.4"),
        ("plain20-cifar", "0.27"),
        ("plain56-cifar", "0.85"),
        ("resnet110-cifar-preact", "1.7"),
        ("resnet164-cifar-preact", "1.7"),
        ("resnet1001-cifar-preact", "10.2"),
        ("wrn-40-1", "0.6"),
        ("wrn-40-2", "2.2"),
        ("wrn-40-4", "8.9"),
        ("wrn-16-8", "11.0"),
        ("wrn-28-10", "36.5"),
    ],
)
def test_sizes_are_the_papers(name: str, millions: str) -> None:
    digits = len(millions.partition(".")[2])
    # "10.2" is truncated in the paper, the others are rounded
    assert abs(parameters(name) / 1e6 - float(millions)) < 1.5 * 10**-digits


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
    ],
)
def test_sizes_are_torchvisions(name: str, count: int) -> None:
    assert parameters(name, 1000) == count


def test_plain_networks_lack_the_projections_alone() -> None:
    projections = sum(channels * 2 * channels + 4 * channels for channels in (64, 128, 256))
    assert parameters("resnet34", 1000) - parameters("plain34", 1000) == projections
    assert parameters("plain18", 1000) == parameters("resnet18", 1000, shortcut="A")


def test_option_c_projects_in_every_block() -> None:
    extra = {"A": 0, "B": 16 * 32 + 64 + 32 * 64 + 128}
    extra["C"] = extra["B"] + 3 * (16**2 + 32) + 2 * (32**2 + 64) + 2 * (64**2 + 128)
    for option, count in extra.items():
        assert parameters("resnet20-cifar", shortcut=option) - parameters("resnet20-cifar") == count


def test_resnext_and_wide_names_and_shapes_are_torchvisions() -> None:
    with torch.device("meta"):
        grouped, wide = (create(spec_of(name), 1000) for name in ("resnext50_32x4d", "wide_resnet50_2"))
    assert grouped.state_dict()["layer1.0.conv2.weight"].shape == (128, 4, 3, 3)
    assert grouped.get_submodule("layer3.1.conv2").groups == 32
    assert wide.state_dict()["layer1.0.conv2.weight"].shape == (128, 128, 3, 3)
    assert list(grouped.state_dict()) == list(create(spec_of("resnet50"), 1000).state_dict())


def pre_activated(model: ResNet, x: torch.Tensor) -> torch.Tensor:
    """The paper's function, from the names of the weights alone."""

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        bn = model.get_submodule(name)
        assert isinstance(bn, nn.BatchNorm2d)
        return F.relu(F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps))  # type: ignore[arg-type]

    def conv(name: str, y: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = model.get_parameter(f"{name}.weight")
        return F.conv2d(y, weight, stride=stride, padding=weight.shape[2] // 2)

    x = norm("bn1", conv("conv1", x))
    for name, block in model.blocks():
        bottleneck = isinstance(block, Bottleneck)
        stride = 2 if name in ("layer2.0", "layer3.0") else 1
        first = x if name == "layer1.0" else norm(f"{name}.bn1", x)
        y = conv(f"{name}.conv1", first, 1 if bottleneck else stride)
        y = conv(f"{name}.conv2", norm(f"{name}.bn2", y), stride if bottleneck else 1)
        y = conv(f"{name}.conv3", norm(f"{name}.bn3", y)) if bottleneck else y
        if f"{name}.downsample.0.weight" in model.state_dict():
            x = conv(f"{name}.downsample.0", first, stride)
        elif stride == 2:
            extra = y.shape[1] - x.shape[1]
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra // 2, extra // 2))
        x = x + y
    return model.fc(norm("norm", x).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["resnet14-cifar-preact", "resnet20-cifar-bottleneck-preact", "wrn-10-2"])
def test_norms_stand_before_convolutions(name: str) -> None:
    model, _ = random_model(spec_of(name), 10, 0)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), pre_activated(model, images))


def test_plain_networks_add_nothing() -> None:
    model, _ = random_model(spec_of("plain8-cifar"), 10, 0)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(x)
        x = F.relu(model.bn1(model.conv1(x)))
        for _, block in model.blocks():
            for conv, bn in block.convs():
                x = F.relu(bn(conv(x)))
        torch.testing.assert_close(expected, model.fc(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("name", "adds", "precision"),
    [
        ("plain14-cifar", 0, "fp32"),  # the others in fp32: test_pre_activation_weights_need_no_name
        ("plain14-cifar", 0, "int8"),
        ("resnet14-cifar-preact", 6, "int8"),
        ("resnet20-cifar-bottleneck-preact", 6, "int8"),
        ("wrn-10-2", 3, "int8"),
    ],
)
def test_the_family_becomes_engines(name: str, adds: int, precision: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 16, 3), np.uint8)
    file = tmp_path / "images.npz"
    np.savez(file, images=pixels)
    report = rescompile.build(
        name, weights="random", calibration=file if precision == "int8" else None, validation=file,
        precision=precision, backend="openvino",
        size=16, output=tmp_path / "engine", batch="1:1:4", effort="fast",
    )  # fmt: skip
    assert report.engine_executed
    assert report.relative_rms is not None
    assert report.relative_rms < (1e-4 if precision == "fp32" else 0.2)
    assert report.model == name
    if precision == "int8":
        assert report.fused is not None
        assert report.fused.of == adds
    model, _ = random_model(spec_of(name), 10, 0)
    with rescompile.load(tmp_path / "engine") as engine, torch.inference_mode():
        images = engine.preprocess(pixels[0])
        expected = model(torch.from_numpy(images)).numpy()
        found = engine(images)
    np.testing.assert_allclose(found, expected, atol=0.02 if precision == "fp32" else 1.5)


@pytest.mark.parametrize("name", ["wrn-10-2", "resnet20-cifar-bottleneck-preact", "resnet14-cifar-preact"])
def test_pre_activation_weights_need_no_name(name: str, tmp_path: Path) -> None:
    model, _ = random_model(spec_of(name), 10, 0)
    file = tmp_path / "net.safetensors"
    save_file(model.state_dict(), file)
    report = rescompile.build(file, precision="fp32", backend="openvino", size=16, output=tmp_path / "engine")
    assert report.model == name
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with rescompile.load(tmp_path / "engine") as engine, torch.inference_mode():
        np.testing.assert_allclose(engine(images.numpy()), model(images).numpy(), atol=2e-3)


def test_weights_of_named_networks_are_held_to_the_name(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_file(random_model(spec_of("plain14-cifar"), 10, 0)[0].state_dict(), file)
    plain = load_checkpoint(file)
    assert not build_model(spec_of("plain14-cifar"), plain).blocks()[0][1].form.residual
    with pytest.raises(CheckpointError, match=r"holds a resnet14-cifar, but plain20-cifar was asked"):
        build_model(spec_of("plain20-cifar"), plain)
    save_file(random_model(spec_of("resnet14-cifar", shortcut="C"), 10, 0)[0].state_dict(), file)
    projected = load_checkpoint(file)
    with pytest.raises(CheckpointError, match=r"shortcut option C, but plain14-cifar has no shortcuts"):
        build_model(spec_of("plain14-cifar"), projected)
    assert build_model(spec_of("resnet14-cifar"), projected).blocks()[1][1].downsample is not None

from __future__ import annotations

import lzma
import shutil

import pytest
import torch

from rescompile.models.registry import KNOWN_NAMES, create, find, with_options
from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of
from rescompile.sources.identification import anatomy, describe, identify, variant


def state_of(name, shortcut=None):
    with torch.device("meta"):
        return create(with_options(find(depth=None, name=name), shortcut=shortcut), 10).state_dict()


@pytest.mark.parametrize("name", KNOWN_NAMES)
def test_every_known_network_is_identified_by_its_weights(name):
    spec, found = find(depth=None, name=name), identify(state_of(name))
    if not spec.is_usual and not spec.pre_activation:  # names of wide and grouped networks are given
        assert found is None
    else:
        # weights show no absence of shortcuts
        assert found.visible == spec.visible
        assert found.shortcut == spec.shortcut
        assert found.name == spec.name.replace("plain", "resnet")


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("name", ["resnet18", "resnet20-cifar", "resnet20-cifar-preact", "resnet34-preact"])
def test_every_shortcut_option_is_identified(name, shortcut):
    found = identify(state_of(name, shortcut=shortcut))
    assert found.shortcut == shortcut
    assert found.name == ("wrn-22-1" if name == "resnet20-cifar-preact" and shortcut != "A" else name)


def test_the_shortcut_option_is_seen():
    found = identify(state_of("resnet56-cifar", shortcut="B"))
    assert (found.name, found.shortcut) == ("resnet56-cifar", "B")
    assert describe(state_of("resnet56-cifar")) == "a resnet56-cifar with shortcut option A"


def fill(name, shape):
    return {name: torch.empty(shape, device="meta")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (fill("conv1.0.weight", (32, 3, 3, 3)), "ResNet-D stem"),
        (fill("layer2.0.downsample.1.weight", (512, 256, 1, 1)), "ResNet-D shortcut"),
        (fill("layer1.0.se.fc1.weight", (16, 256, 1, 1)), "SE network"),
        (fill("layer1.0.se_module.fc1.weight", (16, 256, 1, 1)), "SE network"),
        (
            fill("layer1.0.conv1.weight", (128, 64, 1, 1)) | fill("layer1.0.conv2.weight", (128, 4, 3, 3)),
            "ResNeXt",
        ),
        (
            fill("layer1.0.conv1.weight", (128, 64, 1, 1)) | fill("layer1.0.conv2.weight", (128, 128, 3, 3)),
            "a wide",
        ),
    ],
)
def test_relatives_of_resnet_are_named_and_not_identified(changes, words):
    state = {**state_of("resnet50"), **changes}
    assert words in variant(state)
    assert words in describe(state)
    assert identify(state) is None


def test_plain_networks_are_no_variant():
    usual = [name for name in KNOWN_NAMES if find(depth=None, name=name).is_usual]
    assert [variant(state_of(name)) for name in usual] == [None] * len(usual)


def test_unknown_resnets_are_described_by_their_blocks():
    fewer = {name: tensor for name, tensor in state_of("resnet34").items() if not name.startswith("layer3.5")}
    assert identify(fewer) is None
    assert describe(fewer) == "a ResNet of 3-4-5-3 basic blocks with a 7x7 stem of 64 channels"
    no_last_stage = {name: tensor for name, tensor in state_of("resnet18").items() if "layer4" not in name}
    assert identify(no_last_stage) is None
    cifar_stem = {**state_of("resnet18"), **fill("conv1.weight", (64, 3, 3, 3))}
    assert identify(cifar_stem) is None
    assert "3x3 stem" in describe(cifar_stem)


@pytest.mark.parametrize(
    "state",
    [
        {},
        fill("features.0.weight", (64, 3, 3, 3)),
        fill("conv1.weight", (64, 3, 7, 7)),
        fill("conv1.weight", (64,)) | fill("layer1.0.conv2.weight", (1, 1, 1, 1)),
        fill("conv1.weight", (64, 3, 7, 7)) | fill("layer2.0.conv2.weight", (1, 1, 1, 1)),
        fill("conv1.weight", (64, 3, 7, 7)) | fill("layer1.0.conv9.weight", (1, 1, 1, 1)),
        fill("conv1.weight", (64, 3, 7, 7)) | fill("layer9999999999.0.conv2.weight", (1, 1, 1, 1)),
        fill("conv1.weight", (64, 3, 7, 7))
        | fill("layer1.0.conv1.weight", ())
        | fill("layer1.0.conv2.weight", ()),
    ],
)
def test_what_is_no_resnet_is_not_identified(state):
    assert identify(state) is None
    assert variant(state) is None


def test_block_numbers_do_not_decide_the_depth():
    """A file that names one block 99999 must not make a network of a hundred thousand."""
    huge = fill("conv1.weight", (16, 3, 3, 3))
    for stage in (1, 2, 3):
        huge |= fill(f"layer{stage}.99999.conv2.weight", (16, 16, 3, 3))
    assert anatomy(huge).stages == (1, 1, 1)


@pytest.mark.parametrize("depth", [18, 50])
def test_published_imagenet_weights_are_identified_and_built(real_data, tmp_path, depth):
    path = tmp_path / "weights.pth"
    with lzma.open(real_data / "weights" / f"resnet{depth}-pqf.pth.xz") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    checkpoint = load_checkpoint(path)
    assert checkpoint.classes == 1000
    assert spec_of(checkpoint) == find(depth=depth, name=None)
    model = build_model(spec_of(checkpoint), checkpoint)
    built = model.state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in checkpoint.state_dict.items())

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from safetensors.torch import save_file

from rescompile.errors import CheckpointError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find, with_options
from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of
from rescompile.sources.identification import identify

RESNET20 = find(depth=None, name="resnet20-cifar")


def logits(model):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(torch.randn(2, 3, 32, 32))


def akamaster(state):
    """A checkpoint in the form that akamaster's programs save."""
    renamed = {
        name.replace("fc.", "linear.").replace("downsample.", "shortcut."): t for name, t in state.items()
    }
    return {
        "state_dict": {f"module.{n}": t for n, t in renamed.items() if "num_batches" not in n},
        "best_prec1": 91.7,
    }


FORMS = {
    "plain": dict,
    "nested": lambda state: {"model": state, "epoch": 90},
    "data parallel": lambda state: {
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}
    },
    "akamaster": akamaster,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_every_way_of_saving_gives_the_same_network(save, cifar_state, cifar_b_state, form, shortcut):
    state = cifar_state if shortcut == "A" else cifar_b_state
    expected = build_model(RESNET20, load_checkpoint(save(state, "plain.pth")))
    checkpoint = load_checkpoint(save(FORMS[form](state), "other.th"))
    assert identify(checkpoint.state_dict).shortcut == shortcut
    assert torch.equal(logits(build_model(RESNET20, checkpoint)), logits(expected))


def test_safetensors_and_half_precision(tmp_path, cifar_state):
    half = {name: t.half() if t.is_floating_point() else t for name, t in cifar_state.items()}
    save_file(half, tmp_path / "half.safetensors")
    checkpoint = load_checkpoint(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in checkpoint.state_dict.values()} == {torch.float32}
    assert torch.equal(checkpoint.state_dict["fc.weight"], cifar_state["fc.weight"].half().float())
    assert logits(build_model(RESNET20, checkpoint)).isfinite().all()


def test_a_checkpoint_knows_its_file_and_classes(save, resnet18_state):
    path = save(resnet18_state, "photos.pt")
    checkpoint = load_checkpoint(path)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (checkpoint.source, checkpoint.classes) == ("photos.pt", 7)
    assert spec_of(checkpoint).name == "resnet18"
    model = build_model(spec_of(checkpoint), checkpoint)
    assert model.fc.out_features == 7
    assert not model.training


def test_a_built_network_does_not_share_memory_with_the_checkpoint(save, cifar_state):
    checkpoint = load_checkpoint(save(cifar_state))
    with torch.no_grad():
        build_model(RESNET20, checkpoint).fc.weight.zero_()
    assert checkpoint.state_dict["fc.weight"].abs().sum() > 0


def test_the_stride_is_an_option_and_not_in_the_file(save, cifar_state):
    """Weights of a bottleneck network fit both places of the stride; the answers differ."""
    spec = find(depth=None, name="resnet11-cifar-bottleneck")
    state = random_model(spec, 10, 0)[0].state_dict()
    checkpoint = load_checkpoint(save(dict(state)))
    v1 = build_model(with_options(spec_of(checkpoint), stride_on="1x1"), checkpoint)
    assert not torch.allclose(logits(v1), logits(build_model(spec, checkpoint)))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            "resnet101",
            r"weights\.pth holds a resnet18, but resnet101 was asked: pass --depth 18, or other weights",
        ),
        ("resnet34", "holds a resnet18, but resnet34 was asked"),
        ("resnet20-cifar", "holds a resnet18, but resnet20-cifar was asked"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(save, resnet18_state, asked, words):
    with pytest.raises(CheckpointError, match=words):
        build_model(find(depth=None, name=asked), load_checkpoint(save(resnet18_state)))


def test_wrong_depth_of_cifar_weights_names_the_model(save, cifar_state):
    with pytest.raises(CheckpointError, match="resnet50 was asked: pass --model resnet20-cifar, or"):
        build_model(find(depth=50, name=None), load_checkpoint(save(cifar_state)))


def test_a_shortcut_that_was_asked_for_is_not_overruled(save, cifar_state, cifar_b_state):
    a, b = load_checkpoint(save(cifar_state, "a.pth")), load_checkpoint(save(cifar_b_state, "b.pth"))
    asked = {option: with_options(RESNET20, shortcut=option) for option in ("A", "B")}
    assert build_model(asked["A"], a).fc.out_features == build_model(asked["B"], b).fc.out_features == 10
    with pytest.raises(CheckpointError, match=r"a\.pth holds .* option A, but option B was asked"):
        build_model(asked["B"], a)
    with pytest.raises(CheckpointError, match=r"b\.pth holds .* option B, but option A was asked"):
        build_model(asked["A"], b)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(save, cifar_state):
    del cifar_state["layer3.1.bn2.bias"]
    cifar_state["layer1.0.extra"] = torch.ones(1)
    cifar_state["fc.bias"] = torch.ones(11)
    words = (
        r"does not fit resnet20-cifar; missing: layer3\.1\.bn2\.bias; unexpected: layer1\.0\.extra; "
        r"of another shape: fc\.bias \(\[11\] instead of \[10\]\)\. The file holds a resnet20-cifar"
    )
    with pytest.raises(CheckpointError, match=words):
        build_model(RESNET20, load_checkpoint(save(cifar_state)))


def test_a_long_list_of_missing_tensors_is_cut(save, cifar_state):
    folded = {name: tensor for name, tensor in cifar_state.items() if "bn" not in name}
    with pytest.raises(
        CheckpointError, match=r"missing: bn1\.weight, bn1\.bias, bn1\.running_mean and 73 more"
    ):
        build_model(RESNET20, load_checkpoint(save(folded)))


def test_grey_images_need_another_stem(save, resnet18_state):
    resnet18_state["conv1.weight"] = torch.ones(64, 1, 7, 7)
    words = r"conv1\.weight \(\[64, 1, 7, 7\] instead of \[64, 3, 7, 7\]\)"
    with pytest.raises(CheckpointError, match=words):
        build_model(find(depth=18, name=None), load_checkpoint(save(resnet18_state)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["layer2.1.conv1.weight", "bn1.running_var", "fc.bias"])
def test_weights_that_are_not_finite_are_named(save, cifar_state, name, value):
    cifar_state[name] = cifar_state[name].clone()
    cifar_state[name].view(-1)[3] = value
    with pytest.raises(CheckpointError, match=rf"weights\.pth: {name} has 1 of \d+ values NaN or infinite"):
        build_model(RESNET20, load_checkpoint(save(cifar_state)))


@pytest.mark.parametrize(
    ("variance", "accepted"), [(-1.0, False), (-1e-5, False), (0.0, True), (-0.9e-5, True)]
)
def test_a_variance_must_leave_something_under_the_root(save, cifar_state, variance, accepted):
    name = "layer3.2.bn1.running_var"
    cifar_state[name] = cifar_state[name].clone()
    cifar_state[name][5] = variance
    checkpoint = load_checkpoint(save(cifar_state))
    if accepted:
        assert logits(build_model(RESNET20, checkpoint)).isfinite().all()
        return
    with pytest.raises(CheckpointError, match=rf"{name} is negative \({variance:g} in channel 5\)"):
        build_model(RESNET20, checkpoint)


def test_a_dead_channel_is_no_error(save, cifar_state):
    for name in ("weight", "bias"):
        cifar_state[f"bn1.{name}"] = torch.zeros(16)
    assert logits(build_model(RESNET20, load_checkpoint(save(cifar_state)))).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"conv1.0.weight": torch.ones(32, 3, 3, 3)},
            "a ResNet-D stem .* cannot be built from weights alone: export .*--onnx",
        ),
        ({"layer1.0.se.fc1.weight": torch.ones(4, 16, 1, 1)}, "an SE network .* cannot be built"),
        ({"layer1.0.conv1.weight": torch.ones(160, 16, 3, 3)}, "a ResNeXt .* cannot be built"),
        (
            {
                "layer1.0.conv1.weight": torch.ones(160, 16, 3, 3),
                "layer1.0.conv2.weight": torch.ones(160, 160, 3, 3),
            },
            "a wide ResNet, which cannot be built from weights alone",
        ),
        ({"fc.weight": torch.ones(10)}, r"fc\.weight has shape \[10\], not \[classes, features\]"),
        ({"fc.weight": torch.ones(0, 64)}, r"fc\.weight has shape \[0, 64\]"),
    ],
)
def test_networks_that_are_not_supported_are_refused_on_loading(save, cifar_state, changes, words):
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(save({**cifar_state, **changes}))


def test_a_network_without_classifier_or_of_another_kind(save, cifar_state):
    headless = {name: tensor for name, tensor in cifar_state.items() if not name.startswith("fc.")}
    with pytest.raises(
        CheckpointError, match=r"holds a resnet20-cifar .* without a classifier 'fc\.weight' .*--onnx"
    ):
        load_checkpoint(save(headless))
    other = {"features.0.weight": torch.ones(1), "head.weight": torch.ones(1)}
    with pytest.raises(
        CheckpointError, match=r"no state_dict of a network of convolutions .*features\.0\.weight"
    ):
        load_checkpoint(save(other))


def test_a_resnet_that_is_none_of_ours_is_described(save, resnet18_state):
    shorter = {name: tensor for name, tensor in resnet18_state.items() if not name.startswith("layer3.1")}
    checkpoint = load_checkpoint(save(shorter))
    with pytest.raises(
        CheckpointError,
        match=r"holds a ResNet of 2-2-1-2 basic .* which its weights alone do not tell: .*--onnx",
    ):
        spec_of(checkpoint)
    with pytest.raises(
        CheckpointError, match=r"does not fit resnet18; missing: layer3\.1\.conv1\.weight.*2-2-1-2"
    ):
        build_model(find(depth=18, name=None), checkpoint)


def test_reading_errors_reach_the_user(tmp_path):
    (tmp_path / "notes.pth").write_text("these are no weights")
    with pytest.raises(CheckpointError, match=r"notes\.pth is a text file, not a checkpoint"):
        load_checkpoint(tmp_path / "notes.pth")

"""Names of training programs become torchvision's; what is beside the network is left out, and said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find, with_options
from rescompile.sources.layers import in_order, linear_layers
from rescompile.sources.torchvision_names import canonical
from rescompile.wording import listing

HERE = Path("weights.pth")


@pytest.fixture
def trunk(resnet18_state):
    return {name: tensor for name, tensor in resnet18_state.items() if not name.startswith("fc.")}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone.", "module.model.", "_orig_mod.", "encoder_q."]
)
def test_one_prefix_is_taken_off(cifar_state, prefix):
    found = canonical({prefix + name: tensor for name, tensor in cifar_state.items()}, HERE).state_dict
    assert list(found) == [name for name in cifar_state if "num_batches" not in name]


def test_akamasters_names_become_torchvisions(cifar_b_state):
    theirs = {
        f"module.{name.replace('downsample', 'shortcut').replace('fc.', 'linear.')}": tensor
        for name, tensor in cifar_b_state.items()
    }
    assert set(canonical(theirs, HERE).state_dict) == {
        name for name in cifar_b_state if "num_batches" not in name
    }


@pytest.mark.parametrize(
    ("trunk_prefix", "head"),
    [
        ("", "fc.1"), ("", "last_linear"), ("", "head.fc"), ("", "classifier"), ("", "classifier.1"), ("", "head"),
        ("backbone.", "classifier"), ("resnet.", "linear"), ("encoder.", "head"), ("backbone.", "head.fc"),
    ],
)  # fmt: skip
def test_the_one_layer_behind_the_features_is_the_classifier(resnet18_state, trunk, trunk_prefix, head):
    tensors = {trunk_prefix + name: tensor for name, tensor in trunk.items()}
    tensors |= {f"{head}.{role}": resnet18_state[f"fc.{role}"] for role in ("weight", "bias")}
    found = canonical(tensors, HERE)
    assert torch.equal(found.state_dict["fc.weight"], resnet18_state["fc.weight"])
    assert f"the classifier is '{head}'" in found.notes or head == "linear"


def test_a_classifier_without_bias_has_one_of_zeros(resnet18_state):
    del resnet18_state["fc.bias"]
    found = canonical(resnet18_state, HERE)
    assert not found.state_dict["fc.bias"].any()
    assert found.notes == ("the classifier 'fc' has no bias, so it is zero",)


def test_a_head_outside_of_the_backbone_replaces_the_one_inside(resnet18_state):
    own = torch.rand(3, 512)
    tensors = {f"backbone.{name}": tensor for name, tensor in resnet18_state.items()} | {"head.weight": own}
    found = canonical(tensors, HERE)
    assert torch.equal(found.state_dict["fc.weight"], own)
    assert "the one inside of the backbone, 'fc', was left out" in found.notes[0]


@pytest.mark.parametrize(
    "heads",
    [
        {"fc.weight": (7, 512), "fc_2.weight": (9, 512)},
        {"fc.0.weight": (64, 512), "fc.2.weight": (7, 32)},
    ],
)
def test_several_layers_that_may_be_the_head_are_listed_with_what_works(trunk, heads):
    tensors = {**trunk, **{name: torch.ones(shape) for name, shape in heads.items()}}
    first = next(iter(heads)).removesuffix(".weight")
    with pytest.raises(CheckpointError, match=rf"may be its head \(.*{first} .*--onnx.*live module"):
        canonical(tensors, HERE)


def test_layers_that_follow_one_another_stay_as_they_are(trunk):
    heads = {"fc.0.weight": torch.ones(64, 512), "fc.2.weight": torch.ones(7, 64)}
    assert set(heads) < set(canonical({**trunk, **heads}, HERE).state_dict)


def test_strangers_are_left_out_with_a_note(resnet18_state):
    tensors = {f"model.{name}": tensor for name, tensor in resnet18_state.items()}
    found = canonical({**tensors, "criterion.weight": torch.ones(7)}, HERE)
    assert found.notes == ("left out, because it lies outside of the network: criterion.weight",)
    assert canonical({**resnet18_state, "criterion.weight": torch.ones(7)}, HERE).notes == found.notes


def test_a_normalization_beside_the_network_is_not_lost(resnet18_state):
    tensors = {f"1.{name}": tensor for name, tensor in resnet18_state.items()}
    with pytest.raises(CheckpointError, match=r"'0\.mean' is 0\.5,0\.4,0\.3.* pass --mean 0\.5,0\.4,0\.3"):
        canonical({"0.mean": torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), **tensors}, HERE)


def test_unknown_tensors_inside_of_the_network_stay(resnet18_state):
    tensors = {**resnet18_state, "layer1.0.gate.weight": torch.ones(3)}
    assert "layer1.0.gate.weight" in canonical(tensors, HERE).state_dict


def test_pruned_weights_are_multiplied_by_their_masks(resnet18_state):
    weight = resnet18_state.pop("layer1.0.conv1.weight")
    mask = (torch.arange(weight.numel()) % 2).view_as(weight)
    tensors = {**resnet18_state, "layer1.0.conv1.weight_orig": weight, "layer1.0.conv1.weight_mask": mask}
    assert torch.equal(canonical(tensors, HERE).state_dict["layer1.0.conv1.weight"], weight * mask)


def test_the_bias_of_a_convolution_goes_into_the_norm_behind_it(resnet18_state):
    norm, bias = resnet18_state["layer2.0.bn1.running_mean"], torch.rand(128)
    shortcut = resnet18_state["layer2.0.downsample.1.running_mean"]
    tensors = {**resnet18_state, "layer2.0.conv1.bias": bias, "layer2.0.downsample.0.bias": bias}
    found = canonical(tensors, HERE).state_dict
    assert torch.equal(found["layer2.0.bn1.running_mean"], norm - bias)
    assert torch.equal(found["layer2.0.downsample.1.running_mean"], shortcut - bias)
    assert "layer2.0.conv1.bias" not in found


def other_names(state, *, shortcut_first):
    """Names that say nothing, in the order of the layers."""
    groups = {}
    for name, tensor in state.items():
        layer, _, role = name.rpartition(".")
        groups.setdefault(layer, {})[role] = tensor
    order = list(groups)
    if shortcut_first:
        block = lambda layer: ".".join(layer.split(".")[:2]) if layer.startswith("layer") else layer  # noqa: E731
        blocks = list(dict.fromkeys(map(block, order)))
        order.sort(key=lambda layer: (blocks.index(block(layer)), "downsample" not in layer))
    return {f"m{index}.{role}": t for index, layer in enumerate(order) for role, t in groups[layer].items()}


@pytest.mark.parametrize("shortcut_first", [False, True])
@pytest.mark.parametrize("network", ["resnet18_state", "cifar_b_state"])
def test_other_names_are_matched_by_order_and_shapes(request, network, shortcut_first):
    state = request.getfixturevalue(network)
    found = canonical(other_names(state, shortcut_first=shortcut_first), HERE)
    assert found.foreign
    assert set(found.state_dict) == {name for name in state if "num_batches" not in name}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict.items())


def test_a_sequence_that_two_networks_may_have_is_not_named(cifar_state):
    """Without projections a plain network has the same convolutions as a residual one."""
    found = canonical(other_names(cifar_state, shortcut_first=False), HERE)
    assert not found.foreign
    assert "conv1.weight" not in found.state_dict


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_becomes_float32(dtype):
    source = torch.tensor([1.5, -2.0], dtype=dtype)
    found = canonical({"fc.weight": source}, HERE).state_dict["fc.weight"]
    assert found.dtype == torch.float32
    assert found.tolist() == [1.5, -2.0]
    found += 1
    assert source.tolist() == [1.5, -2.0]


def test_parameters_and_views_become_plain_contiguous_tensors():
    found = canonical({"fc.weight": torch.nn.Parameter(torch.ones(2, 3)).t()}, HERE).state_dict["fc.weight"]
    assert type(found) is torch.Tensor
    assert found.is_contiguous()
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2, dtype=torch.int8), "'fc.weight' as int8: pass the float weights"),
        (torch.ones(2, dtype=torch.complex64), "as complex64"),
        (torch.ones(2).to_sparse(), "as sparse_coo"),
        (torch.ones(2, device="meta"), "'fc.weight' without its values"),
    ],
)
def test_tensors_that_are_no_float_weights_are_refused(tensor, words):
    with pytest.raises(CheckpointError, match=words):
        canonical({"fc.weight": tensor}, HERE)


def test_two_networks_are_ambiguous_unless_one_is_wanted(cifar_state, cifar_b_state):
    two = {f"encoder_q.{name}": tensor for name, tensor in cifar_state.items()}
    two |= {f"encoder_k.{name}": tensor for name, tensor in cifar_b_state.items()}
    with pytest.raises(
        CheckpointError, match=r"holds 2 networks \(under 'encoder_k', 'encoder_q'\): .*--entry"
    ):
        canonical(two, HERE)
    found = canonical(two, HERE, "encoder_k")
    assert torch.equal(found.state_dict["conv1.weight"], cifar_b_state["conv1.weight"])
    assert found.state_dict.keys() == canonical(cifar_b_state, HERE).state_dict.keys()
    assert not found.notes, "the other network's layers are not this one's"


def test_two_spellings_of_one_name_are_ambiguous(cifar_state):
    with pytest.raises(CheckpointError, match=r"'fc\.weight' twice"):
        canonical({**cifar_state, "linear.weight": torch.ones(3)}, HERE)


def test_a_listing_is_short():
    assert listing("abc") == "a, b, c"
    assert listing("abcde") == "a, b, c and 2 more"


def test_a_norm_that_does_not_follow_its_convolution_names_nothing(resnet18_state):
    """In a pre-activation network with normed projections, norms stand in front of what they belong to."""
    tensors = other_names(resnet18_state, shortcut_first=False)
    layers = list(dict.fromkeys(name.split(".")[0] for name in tensors))
    layers[3], layers[4] = layers[4], layers[3]
    swapped = {name: tensors[name] for layer in layers for name in tensors if name.split(".")[0] == layer}
    assert not canonical(swapped, HERE).foreign


@pytest.mark.parametrize("network", ["resnet18_state", "cifar_b_state"])
def test_layers_of_the_blocks_are_not_called_linear(request, network):
    state = request.getfixturevalue(network)
    assert set(linear_layers(state)) == {"fc"}
    (last,) = linear_layers(other_names(state, shortcut_first=True))
    assert last.startswith("m")
    head = {"head.weight": torch.ones(7, 64, 1, 1), "attention.se.fc1.weight": torch.ones(7, 64, 1, 1)}
    assert set(linear_layers({name: state[name] for name in state if "fc" not in name} | head)) == {"head"}


def hugging_faces(name):
    """The name that transformers gives to a layer of a ResNet."""
    name = re.sub(
        r"layer(\d)\.(\d+)\.", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.", name
    )
    name = re.sub(
        r"(conv|bn)(\d)\.(\w+)$",
        lambda m: f"layer.{int(m[2]) - 1}.{m[1]}.{m[3]}" if "." in name[:8] else m[0],
        name,
    )
    for ours, theirs in (
        ("downsample.0", "shortcut.conv"), ("downsample.1", "shortcut.bn"),
        ("conv1.", "resnet.embedder.embedder.conv."),
        ("bn1.", "resnet.embedder.embedder.bn."), ("conv.", "convolution."), ("bn.", "normalization."),
        ("fc.", "classifier.1."),
    ):  # fmt: skip
        name = name.replace(ours, theirs)
    return name


def test_names_that_safetensors_sorted_are_put_in_order():
    """Block 10 comes before block 2 in the file, and the classifier before all others."""
    spec = with_options(find(depth=None, name="resnet74-cifar"), shortcut="B")
    state = random_model(spec, 10, seed=1)[0].state_dict()
    theirs = dict(sorted((hugging_faces(name), tensor) for name, tensor in state.items()))
    assert next(iter(theirs)) == "classifier.1.bias"
    assert "resnet.encoder.stages.2.layers.11.layer.1.normalization.weight" in theirs
    found = canonical(theirs, HERE)
    assert found.foreign
    assert set(found.state_dict) == {name for name in state if "num_batches" not in name}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict.items())


def test_the_order_of_a_file_that_is_not_sorted_stays():
    names = ["b.1.weight", "b.10.weight", "a.weight"]
    assert list(in_order({name: torch.ones(1, 1, 1, 1) for name in names})) == names
    gate = {
        "a.se.0.weight": torch.ones(2, 2),
        "b.weight": torch.ones(1, 1, 3, 3),
        "c.weight": torch.ones(2, 2),
    }
    assert list(in_order(gate)) == list(gate)

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.sources.torchvision_names import canonical

HERE = Path("weights.pth")


def names_of(tensors, path):
    return canonical(tensors, path)[0]


SMALL = {
    "conv1.weight": torch.ones(1),
    "layer1.0.conv1.weight": torch.ones(2, 1, 1, 1),
    "fc.weight": torch.ones(3, 2),
    "fc.bias": torch.ones(3),
}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone.", "module.model.", "_orig_mod.", "encoder_q."]
)
def test_one_prefix_is_taken_off(prefix):
    found = names_of({prefix + name: tensor for name, tensor in SMALL.items()}, HERE)
    assert list(found) == list(SMALL)


def test_akamasters_names_become_torchvisions():
    names = [
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer2.0.shortcut.0.weight",
        "linear.weight",
        "linear.bias",
    ]
    found = names_of({f"module.{name}": torch.ones(1, 1) for name in names}, HERE)
    assert list(found)[2:] == ["layer2.0.downsample.0.weight", "fc.weight", "fc.bias"]


def test_names_of_another_network_stay_as_they_are():
    names = ["features.0.weight", "block1.conv1.weight", "block2.conv1.weight"]
    assert list(names_of(dict.fromkeys(names, torch.ones(1)), HERE)) == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_becomes_float32(dtype):
    source = torch.tensor([1.5, -2.0], dtype=dtype)
    found = names_of({"fc.weight": source}, HERE)["fc.weight"]
    assert found.dtype == torch.float32
    assert found.tolist() == [1.5, -2.0]
    found += 1
    assert source.tolist() == [1.5, -2.0]


def test_counters_are_left_out():
    counters = {"bn1.num_batches_tracked": torch.tensor(7), "n_averaged": torch.tensor(2)}
    assert list(names_of({**SMALL, **counters}, HERE)) == list(SMALL)


def test_parameters_and_views_become_plain_contiguous_tensors():
    found = names_of({"fc.weight": torch.nn.Parameter(torch.ones(2, 3)).t()}, HERE)["fc.weight"]
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
        names_of({"fc.weight": tensor}, HERE)


def test_two_networks_or_two_spellings_are_ambiguous():
    two = {f"{prefix}.{name}": tensor for prefix in ("first", "second") for name, tensor in SMALL.items()}
    with pytest.raises(CheckpointError, match=r"holds 2 networks \(under 'first\.', 'second\.'\)"):
        names_of(two, HERE)
    with pytest.raises(CheckpointError, match=r"holds 2 classifiers \(fc, linear\)"):
        names_of({**SMALL, "linear.weight": torch.ones(3, 2)}, HERE)


def test_of_mocos_two_encoders_the_query_is_the_network():
    two = {f"module.encoder_{end}.{name}": t for end in "qk" for name, t in SMALL.items()}
    assert list(names_of(two, HERE)) == list(SMALL)


def body(width=4):
    return {
        "conv1.weight": torch.ones(width, 3, 3, 3),
        "layer1.0.conv1.weight": torch.ones(width, width, 3, 3),
    }


@pytest.mark.parametrize(
    "head", ["head.fc", "classifier", "classifier.1", "head", "last_linear", "fc.1", "linear"]
)
def test_every_name_of_the_classifier_becomes_fc(head):
    tensors = {f"backbone.{name}": t for name, t in body().items()}
    found, notes = canonical({**tensors, f"{head}.weight": torch.ones(5, 4)}, HERE)
    assert list(found) == [*body(), "fc.weight", "fc.bias"]
    assert notes == ["the classifier has no bias: zeros are taken"]


def test_strangers_and_a_left_over_classifier_are_left_out_with_a_note():
    tensors = {f"model.{name}": t for name, t in body().items()}
    old, own = (
        {"model.fc.weight": torch.ones(9, 4)},
        {"head.weight": torch.ones(2, 4), "head.bias": torch.ones(2)},
    )
    found, notes = canonical({**tensors, **old, **own, "criterion.weight": torch.ones(2)}, HERE)
    assert found["fc.weight"].shape == (2, 4)
    assert "'fc' was left out" in notes[0]
    assert "criterion.weight" in notes[1]


def test_normalization_inside_the_network_is_said_in_options():
    tensors = {"0.mean": torch.full((1, 3, 1, 1), 0.5), "0.std": torch.ones(1, 3, 1, 1)}
    tensors |= {f"1.{name}": t for name, t in body().items()}
    assert "--mean 0.5,0.5,0.5 --std 1,1,1" in canonical(tensors, HERE)[1][0]


def test_names_of_hugging_face_and_of_sequential_children():
    face = [
        "resnet.embedder.embedder.convolution.weight",
        "resnet.embedder.embedder.normalization.bias",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
        "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        "resnet.encoder.stages.1.layers.2.layer.1.normalization.weight",
        "classifier.1.weight",
    ]
    children = [
        "0.weight",
        "1.bias",
        "5.0.downsample.0.weight",
        "4.0.conv1.weight",
        "5.2.bn2.weight",
        "9.weight",
    ]
    expected = [
        "conv1.weight",
        "bn1.bias",
        "layer2.0.downsample.0.weight",
        "layer1.0.conv1.weight",
        "layer2.2.bn2.weight",
        "fc.weight",
    ]
    for names in (face, children):
        found = names_of(
            {
                name: torch.ones(4, 4) if index == 5 else torch.ones(4, 4, 1, 1)
                for index, name in enumerate(names)
            },
            HERE,
        )
        assert list(found)[:6] == expected

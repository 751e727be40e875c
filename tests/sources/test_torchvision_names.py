from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.sources.torchvision_names import ENTRIES, canonical, listing, state_dict_in

HERE = Path("weights.pth")
SMALL = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(2), "fc.weight": torch.ones(3)}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_nested_state_dict_is_found(entry):
    assert state_dict_in({entry: SMALL, "epoch": 7, "optimizer": {"state": {}}}, HERE) == SMALL


def test_nesting_twice_and_the_order_of_entries():
    assert state_dict_in({"model": {"state_dict": SMALL}}, HERE) == SMALL
    averaged = {"fc.weight": torch.zeros(3)}
    assert state_dict_in({"state_dict_ema": averaged, "state_dict": SMALL}, HERE) == SMALL


def test_what_is_no_tensor_is_left_out():
    assert state_dict_in({**SMALL, "epoch": 3, 5: torch.ones(1)}, HERE) == SMALL


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (torch.ones(3), "holds a Tensor, not a state_dict"),
        ([1, 2], "holds a list, not a state_dict"),
        ({}, r"holds no weights \(its entries are none\)"),
        (
            {"epoch": 3, "lr": 0.1, "a": 1, "b": 2, "c": 3},
            r"are epoch, lr, a and 2 more\): pass a state_dict",
        ),
        ({"state_dict": {"model": {"epoch": 1}}}, "its entries are epoch"),
    ],
)
def test_payloads_without_weights_are_described(payload, words):
    with pytest.raises(CheckpointError, match=words):
        state_dict_in(payload, HERE)


def test_a_dictionary_inside_itself_is_no_endless_loop():
    payload = {}
    payload["model"] = payload
    with pytest.raises(CheckpointError, match="holds no weights"):
        state_dict_in(payload, HERE)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone.", "module.model.", "_orig_mod.", "encoder_q."]
)
def test_one_prefix_is_taken_off(prefix):
    found = canonical({prefix + name: tensor for name, tensor in SMALL.items()}, HERE)
    assert list(found) == list(SMALL)


def test_akamasters_names_become_torchvisions():
    names = [
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer2.0.shortcut.0.weight",
        "linear.weight",
        "linear.bias",
    ]
    found = canonical({f"module.{name}": torch.ones(1) for name in names}, HERE)
    assert list(found)[2:] == ["layer2.0.downsample.0.weight", "fc.weight", "fc.bias"]


def test_names_of_another_network_stay_as_they_are():
    names = ["features.0.weight", "block1.conv1.weight", "block2.conv1.weight"]
    assert list(canonical(dict.fromkeys(names, torch.ones(1)), HERE)) == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_becomes_float32(dtype):
    source = torch.tensor([1.5, -2.0], dtype=dtype)
    found = canonical({"fc.weight": source}, HERE)["fc.weight"]
    assert found.dtype == torch.float32
    assert found.tolist() == [1.5, -2.0]
    found += 1
    assert source.tolist() == [1.5, -2.0]


def test_counters_are_left_out():
    counters = {"bn1.num_batches_tracked": torch.tensor(7), "n_averaged": torch.tensor(2)}
    assert list(canonical({**SMALL, **counters}, HERE)) == list(SMALL)


def test_parameters_and_views_become_plain_contiguous_tensors():
    found = canonical({"fc.weight": torch.nn.Parameter(torch.ones(2, 3)).t()}, HERE)["fc.weight"]
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


def test_two_networks_or_two_spellings_are_ambiguous():
    two = {
        f"{prefix}.{name}": tensor for prefix in ("encoder_q", "encoder_k") for name, tensor in SMALL.items()
    }
    with pytest.raises(CheckpointError, match=r"holds 2 networks \(under 'encoder_k\.', 'encoder_q\.'\)"):
        canonical(two, HERE)
    with pytest.raises(CheckpointError, match=r"'fc\.weight' twice"):
        canonical({**SMALL, "linear.weight": torch.ones(3)}, HERE)


def test_a_listing_is_short():
    assert listing("abc") == "a, b, c"
    assert listing("abcde") == "a, b, c and 2 more"

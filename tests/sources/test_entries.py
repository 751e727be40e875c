from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.sources.entries import listing, split_entry, state_dict_in

HERE = Path("weights.pth")
SMALL = {"conv1.weight": torch.ones(1, 1, 1, 1), "fc.weight": torch.ones(3, 1)}
OTHER = {"conv1.weight": torch.zeros(1, 1, 1, 1), "fc.weight": torch.zeros(3, 1)}
NAMES = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "ema",
    "weights",
    "model_state",
    "network",
    "module",
    "teacher",
    "student",
]


@pytest.mark.parametrize("entry", NAMES)
def test_the_one_entry_with_a_network_is_found_and_named(entry):
    found, notes = state_dict_in(
        {entry: SMALL, "epoch": 7, "optimizer": {"state": {0: {"exp.avg": SMALL["conv1.weight"]}}}}, HERE
    )
    assert found == SMALL
    assert notes == [f"the weights are the entry '{entry}' of the file"]


def test_nested_entries_and_tuples():
    assert state_dict_in({"model": {"model": SMALL}}, HERE)[0] == SMALL
    assert state_dict_in((SMALL, {"epoch": 1}), HERE)[0] == SMALL
    assert state_dict_in({"state_dict": SMALL, "criterion": {"loss.weight": torch.ones(3)}}, HERE)[0] == SMALL


@pytest.mark.parametrize(("raw", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_of_timm_and_torchvision_are_taken_and_said(raw, averaged):
    found, notes = state_dict_in({raw: OTHER, averaged: {"n_averaged": torch.tensor(5), **SMALL}}, HERE)
    assert torch.equal(found["conv1.weight"], SMALL["conv1.weight"])
    assert f"averaged ones of the entry '{averaged}'" in notes[0]
    chosen, _ = state_dict_in({raw: OTHER, averaged: SMALL}, HERE, raw)
    assert torch.equal(chosen["conv1.weight"], OTHER["conv1.weight"])


@pytest.mark.parametrize("names", [("net", "ema"), ("student", "teacher"), ("model", "model_ema", "third")])
def test_any_other_pair_is_refused_with_its_names(names):
    payload = dict.fromkeys(names, SMALL)
    with pytest.raises(
        CheckpointError, match=r"networks, under .*choose one with --weights weights\.pth#"
    ) as caught:
        state_dict_in(payload, HERE)
    assert all(repr(name) in str(caught.value) for name in names)
    assert state_dict_in(payload, HERE, names[1])[0] == SMALL


def test_pruned_weights_are_multiplied_by_their_masks():
    pruned = {
        "conv1.weight_orig": torch.full((1, 1, 1, 2), 3.0),
        "conv1.weight_mask": torch.tensor([[[[0.0, 1.0]]]]),
    }
    assert state_dict_in(pruned, HERE)[0]["conv1.weight"].flatten().tolist() == [0, 3]


def test_an_entry_is_written_behind_the_file(tmp_path):
    assert split_entry(Path("a/b.pth#ema")) == (Path("a/b.pth"), "ema")
    (tmp_path / "c#1.pth").touch()
    assert split_entry(tmp_path / "c#1.pth") == (tmp_path / "c#1.pth", None)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (torch.ones(3), "holds a Tensor, not a state_dict"),
        ({}, r"holds no weights \(its entries are none\)"),
        ({"epoch": 3, "lr": 0.1, "a": 1, "b": 2}, r"are epoch, lr, a and 1 more\): pass a state_dict"),
    ],
)
def test_payloads_without_weights_are_described(payload, words):
    with pytest.raises(CheckpointError, match=words):
        state_dict_in(payload, HERE)


def test_a_whole_pickled_model_is_told_how_to_be_saved(save):
    from rescompile.sources.safe_loading import read_payload

    path = save(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    words = r"is a whole pickled model \(it needs the class torch\.nn\..*torch\.save\(model\.state_dict"
    with pytest.raises(CheckpointError, match=words):
        state_dict_in(read_payload(path), path)


def test_a_dictionary_inside_itself_is_no_endless_loop():
    payload = {}
    payload["model"] = payload
    with pytest.raises(CheckpointError, match="holds no weights"):
        state_dict_in(payload, HERE)


def test_a_listing_is_short():
    assert listing("abc") == "a, b, c"
    assert listing("abcde") == "a, b, c and 2 more"

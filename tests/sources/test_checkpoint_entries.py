"""The one network of a checkpoint, wherever it lies; of several, its program's choice or the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.sources.checkpoint_entries import AVERAGES, entry_of
from rescompile.sources.inert_pickle import StandIn

HERE = Path("weights.pth")
NET = {f"layer{index}.weight": torch.full((2, 2, 3, 3), float(index)) for index in range(4)} | {
    "fc.weight": torch.ones(2, 2)
}
OTHER = {name: tensor + 1 for name, tensor in NET.items()}
NAMES = (
    "state_dict", "model_state_dict", "model", "net", "ema", "weights", "model_state", "network", "module", "teacher",
    "student", "classifier",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_one_network_is_taken_wherever_it_lies_and_named(name):
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 2, 3, 3), "step": 3}}}
    found = entry_of({name: NET, "epoch": 7, "optimizer": optimizer}, HERE)
    assert found.tensors == NET
    assert found.notes == (f"the weights are those of the entry '{name}'",)


def test_a_state_dict_itself_needs_no_note():
    found = entry_of({**NET, "epoch": 3, 5: torch.ones(1)}, HERE)
    assert (found.tensors, found.path, found.notes) == (NET, "", ())


def test_nested_twice_and_in_a_tuple():
    assert entry_of({"model": {"state_dict": NET}}, HERE).path == "model.state_dict"
    assert entry_of((NET, {"epoch": 1}), HERE).tensors == NET


@pytest.mark.parametrize(("raw", "average"), AVERAGES.items())
def test_averages_are_taken_as_the_programs_that_write_them_do(raw, average):
    found = entry_of({raw: OTHER, average: NET}, HERE)
    assert found.tensors == NET
    assert found.notes == (
        f"the weights are those of the entry '{average}', the averaged weights; the raw ones are in '{raw}'",
    )


def test_any_other_pair_is_the_users_choice():
    pair = {"net": OTHER, "ema": NET}
    with pytest.raises(
        CheckpointError, match=r"holds 2 networks, in 'net', 'ema': pass the one you mean as --entry"
    ):
        entry_of(pair, HERE)
    assert entry_of(pair, HERE, "ema").tensors == NET
    with pytest.raises(CheckpointError, match=r"no network in 'emma'; its networks are in 'net', 'ema'"):
        entry_of(pair, HERE, "emma")


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (torch.ones(3), "holds a Tensor, not a state_dict"),
        ([1, 2], "holds a list, not a state_dict"),
        ({}, r"no state_dict of a network of convolutions \(its entries are none\)"),
        (
            {"epoch": 3, "lr": 0.1, "a": 1, "b": 2, "c": 3},
            r"are epoch, lr, a and 2 more\): pass one, and for",
        ),
    ],
)
def test_payloads_without_weights_are_described(payload, words):
    with pytest.raises(CheckpointError, match=words):
        entry_of(payload, HERE)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_a_whole_pickled_model_is_told_how_to_be_saved(wrap):
    model = type("ResNet", (StandIn,), {"origin": "torchvision.models.resnet.ResNet"})()
    with pytest.raises(
        CheckpointError,
        match=r"a whole pickled model \(it needs the class torchvision\.models\.resnet\.ResNet",
    ):
        entry_of(wrap(model), HERE)


def test_a_dictionary_inside_itself_is_no_endless_loop():
    payload: dict[str, object] = {}
    payload["model"] = payload
    with pytest.raises(CheckpointError, match="no state_dict of a network of convolutions"):
        entry_of(payload, HERE)


def test_the_beginning_of_the_names_is_an_entry_too():
    payload = {"state_dict": {f"encoder_q.{name}": tensor for name, tensor in NET.items()}}
    found = entry_of(payload, HERE, "encoder_q")
    assert (found.path, found.tensors) == ("state_dict", payload["state_dict"])
    with pytest.raises(CheckpointError, match="has no network in 'encoder'"):
        entry_of(payload, HERE, "encoder")

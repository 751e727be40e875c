"""Weights of a file in a module that is made already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rescompile.errors import CheckpointError
from rescompile.sources.fitting import load_into, read_own_weights


def network() -> nn.Module:
    layers = {
        "stem": nn.Conv2d(3, 4, 3),
        "norm": nn.BatchNorm2d(4),
        "body": nn.Sequential(nn.Conv2d(4, 4, 3)),
    }
    return nn.Sequential(
        nn.ModuleDict(layers), nn.ModuleDict({"last": nn.Conv2d(4, 4, 1), "head": nn.Linear(4, 2)})
    )


def under(start: str, module: nn.Module) -> dict[str, Any]:
    return {f"{start}{name}": tensor for name, tensor in module.state_dict().items()}


SAVED: dict[str, Any] = {
    "alone": lambda own: own.state_dict(),
    "parallel": lambda own: under("module.", own),
    "compiled": lambda own: under("module._orig_mod.", own),
    "a compiled part": lambda own: {
        name.replace("0.body.", "0.body._orig_mod."): tensor for name, tensor in own.state_dict().items()
    },
    "averaged": lambda own: {"n_averaged": torch.tensor(3), **under("module.", own)},
    "averaged beside raw": lambda own: {"model": network().state_dict(), "model_ema": under("module.", own)},
    "with a criterion": lambda own: {
        "state_dict": {**under("model.", own), "criterion.centers": torch.ones(2, 4)}
    },
    "under another name": lambda own: under("student.encoder.", own),
    "half": lambda own: {
        name: t.half() if t.is_floating_point() else t for name, t in own.state_dict().items()
    },
}


@pytest.mark.parametrize("kind", SAVED)
def test_weights_are_found_under_what_wrappers_put_in_front(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, module = network(), network()
    torch.save(SAVED[kind](own), tmp_path / "net.pth")
    notes = load_into(module, read_own_weights(str(tmp_path / "net.pth")), "it")
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, own.state_dict()[name], rtol=1e-3, atol=1e-3)
    assert ("under 'model' are taken, not criterion.centers" in " ".join(notes)) == (
        kind == "with a criterion"
    )
    assert ("the averaged weights" in " ".join(notes)) == (kind == "averaged beside raw")


def test_classes_are_counted_behind_wrappers(tmp_path: Path) -> None:
    torch.save({"model.backbone.body.conv1.weight": torch.ones(2, 2, 1, 1), **under("model.backbone.", network())},
               tmp_path / "net.pth")  # fmt: skip
    bare = read_own_weights(str(tmp_path / "net.pth")).bare
    assert {name.partition(".")[0] for name in bare} == {"backbone"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda own: own.pop("1.head.bias"), r"missing: 1\.head\.bias: pass its own"),
        (lambda own: own.update({"2.more.weight": torch.ones(2)}), r"unexpected: 2\.more\.weight"),
        (
            lambda own: own.update({"1.head.weight": torch.ones(3, 4)}),
            r"of another shape: 1\.head\.weight \(\[3, 4\] instead of \[2, 4\]\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused_by_name(change: Any, said: str, tmp_path: Path) -> None:
    own = network().state_dict()
    change(own)
    torch.save({f"module.{name}": tensor for name, tensor in own.items()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"net\.pth does not fit it; {said}"):
        load_into(network(), read_own_weights(str(tmp_path / "net.pth")), "it")


def test_two_networks_of_one_form_in_a_file_are_refused(tmp_path: Path) -> None:
    torch.save({**under("student.", network()), **under("teacher.", network())}, tmp_path / "net.pth")
    with pytest.raises(
        CheckpointError, match="2 times, under 'student', 'teacher': save the one you mean alone"
    ):
        load_into(network(), read_own_weights(str(tmp_path / "net.pth")), "it")

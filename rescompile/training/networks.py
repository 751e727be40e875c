"""The network to train: a new one by its name, or one with weights to go on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from calibration.preprocess import Preprocess
from rescompile.errors import UsageError
from rescompile.models.form import ShortcutOption
from rescompile.models.registry import find, untrained, with_options
from rescompile.models.specification import ModelSpec
from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of
from rescompile.sources.trained import Trained, read_trained


@dataclass(frozen=True, eq=False)
class Start:
    """The network before its first step."""

    network: nn.Module
    spec: ModelSpec
    weights_sha256: str | None
    trained: Trained | None
    """Metadata of the file of its weights."""

    @property
    def preprocess(self) -> Preprocess | None:
        """The preprocessing that the weights were trained with; None for new weights."""
        if self.trained is not None:
            return self.trained.preprocess
        return None if self.weights_sha256 is None else self.spec.preprocess


def new_network(name: str, classes: int, seed: int, shortcut: ShortcutOption | None = None) -> Start:
    """The network ``name``, initialized as in the papers.

    Raises:
        UsageError: there is no such network, or it has no such shortcuts.
    """
    spec = with_options(find(depth=None, name=name), shortcut=shortcut)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = untrained(name, classes, shortcut=shortcut)
    return Start(network, spec, None, None)


def network_with_weights(path: Path, name: str | None, classes: int, *, new_head: bool, seed: int) -> Start:
    """The network of the file ``path``; with ``new_head`` its classifier is a new one for ``classes`` classes.

    Raises:
        UsageError: the weights are of another number of classes.
        CheckpointError: the file cannot be read, or is not of a network that can be trained.
    """
    trained = read_trained(path)
    checkpoint = load_checkpoint(path)
    named = name or (trained.model if trained else None)
    spec = spec_of(checkpoint) if named is None else find(depth=None, name=named)
    network = build_model(spec, checkpoint)
    if checkpoint.classes != classes and not new_head:
        raise UsageError(
            f"{path} has {checkpoint.classes} classes, and the images have {classes}: pass images of the same "
            "classes, or --new-head to begin with a new classifier (not with --qat)"
        )
    if new_head:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.fc = nn.Linear(network.fc.in_features, classes)
    return Start(network, spec, checkpoint.sha256, trained)


def parameters_of(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())

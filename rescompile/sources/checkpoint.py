"""Networks from checkpoint files: load, identify, build; one sentence says why a file is refused.

file ──torch_file──> payload ──torchvision_names──> state_dict ──identification──> ModelSpec
                                                          └────────build_model─────────> ResNet
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from calibration.file_names import text_of
from rescompile.errors import CheckpointError
from rescompile.files import sha256_of
from rescompile.models.registry import create
from rescompile.models.resnet import ResNet
from rescompile.models.specification import ModelSpec
from rescompile.sources.checkpoint_entries import entry_of
from rescompile.sources.identification import OTHER_WAYS, describe, identify, variant
from rescompile.sources.layers import linear_layers
from rescompile.sources.sharded import hash_of_parts, is_index
from rescompile.sources.torch_file import read_payload
from rescompile.sources.torchvision_names import canonical
from rescompile.wording import listing

_BATCH_NORM_EPS = 1e-5
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one ResNet, float32 on the CPU, with torchvision's names."""

    state_dict: dict[str, Tensor]
    sha256: str
    """SHA-256 of the file, in hexadecimal."""
    source: str
    """Name of the file."""
    classes: int
    """Rows of ``fc.weight``."""
    notes: tuple[str, ...] = ()
    """Which entry was taken, what was left out."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of one network, float32 on the CPU, with torchvision's names where they are known."""

    state_dict: dict[str, Tensor]
    path: Path
    notes: tuple[str, ...]
    """Which entry was taken, what was left out."""
    unused: frozenset[str]
    """Norms that no batch has passed in training."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return _hash(self.path)

    @property
    def source(self) -> str:
        """Name of the file."""
        return text_of(self.path.name)

    @property
    def spec(self) -> ModelSpec | None:
        """The network of the registry that names and shapes show; tensors may be missing from it."""
        return identify(self.state_dict) if "fc.weight" in self.state_dict else None


def read_weights(path: Path, entry: str | None = None) -> Weights:
    """The weights of one network in a file, or in its ``entry``, read without running any code in the file.

    Raises:
        CheckpointError: the file cannot be read, or does not hold the weights of one network.
    """
    taken = entry_of(read_payload(path), path, entry)
    if entry is None and has_task_head(taken.tensors):
        raise CheckpointError(
            f"{path} holds a detector or segmenter, whose weights alone do not say how its parts are joined: for its "
            "backbone pass --model torchvision:resnet50 (or its own depth) and --outputs c2,c3,c4,c5 beside --weights"
        )
    named = canonical(taken.tensors, path, entry if entry != taken.path else None)
    return Weights(named.state_dict, path, (*taken.notes, *named.notes), _unused_norms(taken.tensors))


def has_task_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of torchvision's detectors and segmenters: a backbone and a head of convolutions."""
    if not any(name.startswith("backbone.") for name in tensors):
        return False
    return any(
        name.startswith(("rpn.", "roi_heads.", "aux_classifier."))
        or (name.startswith("classifier.") and tensor.ndim == 4 and tensor.shape[2] > 1)
        for name, tensor in tensors.items()
    )


def _unused_norms(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Norms that have counted no batches although others have: training never ran them."""
    end = f".{_COUNTER}"
    counts = {name.removesuffix(end): int(t) for name, t in tensors.items() if name.endswith(end)}
    if not any(counts.values()):
        return frozenset()

    def is_untouched(name: str) -> bool:
        mean, var = (tensors.get(f"{name}.running_{role}") for role in ("mean", "var"))
        return mean is not None and var is not None and not mean.any() and bool((var == 1).all())

    return frozenset(name for name, count in counts.items() if count == 0 and is_untouched(name))


def fits_registry(weights: Weights) -> bool:
    """Whether the weights are exactly those of a network that the registry makes."""
    if weights.spec is None:
        return False
    with torch.device("meta"):
        expected = create(weights.spec, max(1, len(weights.state_dict["fc.weight"]))).state_dict()
    shapes = {name: tensor.shape for name, tensor in expected.items() if not name.endswith(_COUNTER)}
    return shapes == {name: tensor.shape for name, tensor in weights.state_dict.items()}


def load_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """Read a .pth, .th, .pt or .safetensors file without running any code in it.

    It may be a state_dict of torchvision, timm or akamaster's CIFAR models or, by order and shapes, of others; plain or
    nested, with a common prefix or none, in fp16, bf16, fp32 or fp64. ``entry`` names the one to take where there are
    several networks.

    Raises:
        CheckpointError: the file cannot be read, or does not hold a ResNet of a supported kind.
    """
    return checkpoint_of(read_weights(path, entry))


def checkpoint_of(weights: Weights, asked: ModelSpec | None = None) -> Checkpoint:
    """The weights as those of a network of the registry, or of the one that was ``asked``.

    Raises:
        CheckpointError: they are not.
    """
    state_dict, path = weights.state_dict, weights.path
    kind = variant(state_dict)
    if kind is not None and (weights.spec if asked is None or asked.is_usual else asked) is None:
        raise CheckpointError(f"{path} holds {kind}, which cannot be built from weights alone: {OTHER_WAYS}")
    for name, role in (("conv1.weight", "stem"), ("fc.weight", "classifier")):
        if name not in state_dict:
            raise CheckpointError(
                f"{path} holds {describe(state_dict)} without a {role} '{name}' "
                f"(its linear layers are {listing(linear_layers(state_dict))}): {OTHER_WAYS}"
            )
    classifier = state_dict["fc.weight"]
    if classifier.ndim != 2 or classifier.shape[0] < 1:
        raise CheckpointError(f"{path}: fc.weight has shape {_shape(classifier)}, not [classes, features]")
    return Checkpoint(state_dict, weights.sha256, weights.source, classifier.shape[0], weights.notes)


def spec_of(checkpoint: Checkpoint) -> ModelSpec:
    """The network that the file holds, for ``--weights FILE`` without a depth or model.

    Raises:
        CheckpointError: rescompile does not know the network.
    """
    spec = identify(checkpoint.state_dict)
    if spec is None:
        raise CheckpointError(
            f"{checkpoint.source} holds {describe(checkpoint.state_dict)}, which its weights alone do not tell: "
            f"{OTHER_WAYS}"
        )
    return spec


def build_model(spec: ModelSpec, checkpoint: Checkpoint) -> ResNet:
    """The network of ``spec`` in eval mode, with the weights and the number of classes of the file.

    It has the file's shortcut option.

    Raises:
        CheckpointError: the file holds another network or shortcut than the user asked for, has missing or unexpected
            tensors, or values that cannot be used.
    """
    spec = _with_shortcut_of(checkpoint, spec)
    with torch.device("meta"):
        model = create(spec, checkpoint.classes)
    expected = model.state_dict()
    counters = {name: torch.zeros((), dtype=torch.long) for name in expected if name.endswith(_COUNTER)}
    _check_fit({name: tensor for name, tensor in expected.items() if name not in counters}, spec, checkpoint)
    check_values(checkpoint.state_dict, checkpoint.source)
    own = {
        name: tensor.to(expected[name].dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in checkpoint.state_dict.items()
    }
    model.load_state_dict({**own, **counters}, assign=True)
    return model.eval()


def _with_shortcut_of(checkpoint: Checkpoint, spec: ModelSpec) -> ModelSpec:
    """``spec`` with the file's shortcut option; an error where the file holds another network."""
    held = identify(checkpoint.state_dict)
    if held is None:
        return spec
    if held.visible != spec.visible:
        flag = f"--depth {held.depth}" if held.name == f"resnet{held.depth}" else f"--model {held.name}"
        raise CheckpointError(
            f"{checkpoint.source} holds a {held.name}, but {spec.name} was asked: pass {flag}, or other weights"
        )
    if not spec.residual and held.shortcut != "A":
        raise CheckpointError(
            f"{checkpoint.source} holds a {held.name} with shortcut option {held.shortcut}, but {spec.name} has no "
            "shortcuts: pass another --model, or other weights"
        )
    if held.shortcut != spec.shortcut and spec.shortcut_asked:
        raise CheckpointError(
            f"{checkpoint.source} holds a {held.name} with shortcut option {held.shortcut}, "
            f"but option {spec.shortcut} was asked: leave the option out, or pass other weights"
        )
    return replace(spec, shortcut=held.shortcut)


def _check_fit(expected: Mapping[str, Tensor], spec: ModelSpec, checkpoint: Checkpoint) -> None:
    found = checkpoint.state_dict
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} ({_shape(found[name])} instead of {_shape(tensor)})"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = [
        f"{word}: {listing(names)}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{checkpoint.source} does not fit {spec.name}; {'; '.join(parts)}. The file holds "
            f"{describe(found)}: pass weights of this network; or {OTHER_WAYS}"
        )


def check_values(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Refuse values that no network can have.

    Raises:
        CheckpointError: NaN, infinity or a negative variance.
    """
    for name, tensor in state_dict.items():
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        if bad:
            raise CheckpointError(
                f"{source}: {name} has {bad} of {tensor.numel()} values NaN or infinite: "
                "the training diverged or the file is damaged, pass another checkpoint"
            )
        if name.endswith("running_var") and (tensor + _BATCH_NORM_EPS <= 0).any():
            channel = int(tensor.argmin())
            raise CheckpointError(
                f"{source}: {name} is negative ({tensor[channel].item():g} in channel {channel}), "
                "which a variance cannot be: the file is damaged, pass another checkpoint"
            )


def _hash(path: Path) -> str:
    try:
        return hash_of_parts(path) if is_index(path) else sha256_of(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the path and its disk"
        ) from error


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))

"""Networks from checkpoint files: load, identify, build; one sentence says why a file is refused.

file ──safe_loading──> payload ──entries──> tensors ──torchvision_names──> state_dict ──identification──> ModelSpec
                                                                               └────────build_model─────────> ResNet
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from calibration.names import text_of
from rescompile.errors import CheckpointError
from rescompile.files import sha256_of
from rescompile.models.registry import create
from rescompile.models.resnet import ResNet
from rescompile.models.specification import ModelSpec
from rescompile.sources.entries import listing, split_entry, state_dict_in
from rescompile.sources.identification import describe, identify, variant
from rescompile.sources.safe_loading import read_payload
from rescompile.sources.torchvision_names import canonical, head_like

_BATCH_NORM_EPS = 1e-5
_COUNTER = "num_batches_tracked"
OTHER_WAYS = "Export the network with torch.onnx.export and pass it with --onnx, or pass the module to rescompile.build"
"""Ways that work for every network, whatever its names are."""


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
    """Which entry of the file was taken, and what was left out."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of one network, float32 on the CPU, with torchvision's names where they are known."""

    state_dict: dict[str, Tensor]
    path: Path
    notes: tuple[str, ...]
    """Which entry of the file was taken, and what was left out."""
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


def read_weights(path: Path) -> Weights:
    """The weights in ``FILE`` or ``FILE#ENTRY``, read without running any code in the file.

    Raises:
        CheckpointError: the file cannot be read, or does not hold the weights of one network.
    """
    file, entry = split_entry(path)
    tensors, notes = state_dict_in(read_payload(file), file, entry)
    state_dict, more = canonical(tensors, file, entry)
    return Weights(state_dict, file, (*notes, *more), _unused_norms(tensors))


def _unused_norms(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Norms in their first state, where others have counted batches."""
    counts = {
        name.removesuffix(f".{_COUNTER}"): int(t) for name, t in tensors.items() if name.endswith(_COUNTER)
    }
    if not any(counts.values()):
        return frozenset()
    return frozenset(
        name
        for name, count in counts.items()
        if count == 0
        and not tensors[f"{name}.running_mean"].any()
        and (tensors[f"{name}.running_var"] == 1).all()
    )


def identified(weights: Weights) -> bool:
    """Whether names and shapes are those of a network of the registry, perhaps with missing or other tensors."""
    return identify(weights.state_dict) is not None and "fc.weight" in weights.state_dict


def fits_registry(weights: Weights) -> bool:
    """Whether the weights are exactly those of a network that the registry makes."""
    spec = identify(weights.state_dict)
    if spec is None or "fc.weight" not in weights.state_dict:
        return False
    with torch.device("meta"):
        expected = create(spec, max(1, len(weights.state_dict["fc.weight"]))).state_dict()
    shapes = {name: tensor.shape for name, tensor in expected.items() if not name.endswith(_COUNTER)}
    return shapes == {name: tensor.shape for name, tensor in weights.state_dict.items()}


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a .pth, .th, .pt or .safetensors file without running any code in it.

    It may be a state_dict of torchvision, timm or akamaster's CIFAR models, plain or nested, with a common prefix or
    none, in fp16, bf16, fp32 or fp64.

    Raises:
        CheckpointError: the file cannot be read, or does not hold a ResNet of a supported kind.
    """
    return checkpoint_of(read_weights(path))


def checkpoint_of(weights: Weights) -> Checkpoint:
    """The weights as those of a network of the registry.

    Raises:
        CheckpointError: they are not.
    """
    state_dict, path = weights.state_dict, weights.path
    kind = variant(state_dict)
    if kind is not None:
        raise CheckpointError(
            f"{path} holds {kind}, not a plain ResNet: leave --depth and --model out, and it is built as it is"
        )
    for name, role in (("conv1.weight", "stem"), ("fc.weight", "classifier")):
        if name not in state_dict:
            heads = head_like(state_dict)
            seen = f"; names like a classifier's are {listing(heads)}" if heads else ""
            raise CheckpointError(
                f"{path} has no {role} '{name}': it holds {describe(state_dict)}{seen}. {OTHER_WAYS}"
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
            f"{checkpoint.source} holds {describe(checkpoint.state_dict)}, which rescompile does not know. {OTHER_WAYS}"
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
    model.to_empty(device="cpu").load_state_dict({**checkpoint.state_dict, **counters})
    return model.eval()


def _with_shortcut_of(checkpoint: Checkpoint, spec: ModelSpec) -> ModelSpec:
    """``spec`` with the file's shortcut option; an error where the file holds another network."""
    held = identify(checkpoint.state_dict)
    if held is None:
        return spec
    if held.name != spec.name:
        flag = f"--depth {held.depth}" if held.family == "imagenet" else f"--model {held.name}"
        raise CheckpointError(
            f"{checkpoint.source} holds a {held.name}, but {spec.name} was asked: pass {flag}, or other weights"
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
            f"{describe(found)}: pass weights of this network"
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
        return sha256_of(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the path and its disk"
        ) from error


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))

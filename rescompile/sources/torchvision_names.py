"""A training program's state_dict in one form: torchvision's names, float32, on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rescompile.errors import CheckpointError
from rescompile.sources.identification import identify
from rescompile.sources.layers import TRUNK, in_order, linear_layers
from rescompile.sources.layouts import torchvision_layers
from rescompile.wording import listing

_COUNTERS = {"num_batches_tracked", "n_averaged"}
_STEMS = ("conv1.weight", "conv1.0.weight")
_IN_TRUNK = re.compile(r"(conv1|bn1|layer\d+\.\d+\.(conv\d|bn\d|downsample\.\d+))\.\w+")
_STRANGERS = re.compile(r"(criterion|loss\w*|metrics?|\w*_metric)\.")
_NORMALIZATION = re.compile(r"(.*[._])?(pixel_)?(mean|std)")
_NO_TRACE = (
    "weights alone do not say how such layers are connected: export the network and pass it with --onnx, or pass the "
    "live module to rescompile.build"
)


@dataclass(frozen=True)
class Named:
    """A state_dict with torchvision's names, and what the user must know about it."""

    state_dict: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    foreign: bool = False
    """Whether the names were found by order and shapes alone."""


def canonical(tensors: Mapping[str, Tensor], path: Path, wanted: str | None = None) -> Named:
    """``tensors`` as float32 with torchvision's names, without counters such as ``num_batches_tracked``.

    A common prefix (``module.``, ``model.``, ``backbone.`` …) is removed, or the one that is ``wanted``. The one linear
    layer that reads the last block's features, wherever it is, becomes ``fc``; without a bias it gets one of zeros.
    What lies outside of the network is left out with a note. Pruned weights are multiplied by their masks, and the bias
    of a convolution goes into the norm behind it. Networks under other names are matched by order and shapes.

    Raises:
        CheckpointError: several networks or heads in one file, two tensors with one name, or another type than float.
    """
    cleaned = in_order(_masked({name: tensor for name, tensor in tensors.items() if _is_weight(name)}, path))
    prefix, others = _prefix(cleaned, path, wanted)
    cleaned = {name: tensor for name, tensor in cleaned.items() if not name.startswith(others)}
    inside = {
        name.removeprefix(prefix): tensor for name, tensor in cleaned.items() if name.startswith(prefix)
    }
    outside = {name: tensor for name, tensor in cleaned.items() if not name.startswith(prefix)}
    outside |= {name: inside.pop(name) for name in list(inside) if _STRANGERS.match(name)}
    foreign = None if "layer1.0.conv1.weight" in inside else _renamed_by_order(inside)
    found: dict[str, Tensor] = {}
    for name, tensor in (foreign or inside).items():
        new = _rename(name)
        if new in found:
            raise CheckpointError(
                f"{path} holds '{new}' twice, under two spellings: save the weights of one model"
            )
        found[new] = tensor
    notes: list[str] = []
    if "layer1.0.conv1.weight" in found:
        notes += _take_head(found, outside, path)
        notes += _leave_out(outside, path)
        _fold_biases(found)
    return Named(
        {name: _float32(name, tensor, path) for name, tensor in found.items()},
        tuple(notes),
        foreign=foreign is not None,
    )


def _renamed_by_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """``tensors`` with torchvision's names where order and shapes are those of a network that the registry makes."""
    names = torchvision_layers(tensors)
    if names is None:
        return None
    places = [(name.rpartition("."), tensor) for name, tensor in tensors.items()]
    found = {f"{names.get(layer, layer)}.{role}": tensor for (layer, _, role), tensor in places}
    return None if identify(found) is None else found


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] not in _COUNTERS


def _masked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights that torch.nn.utils.prune stored as original and mask, multiplied."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("_mask"):
            continue
        mask = tensors.get(f"{name.removesuffix('_orig')}_mask") if name.endswith("_orig") else None
        if name.endswith("_orig") and mask is None:
            raise CheckpointError(
                f"{path} holds '{name}' without its mask: save the network after prune.remove"
            )
        found[name.removesuffix("_orig") if mask is not None else name] = (
            tensor if mask is None else tensor * mask
        )
    return found


def _take_head(found: dict[str, Tensor], outside: dict[str, Tensor], path: Path) -> list[str]:
    """Make ``fc`` of the one layer that reads the last block's features; the sentences for the user.

    Raises:
        CheckpointError: several layers may be the head, and they do not follow one another.
    """
    last = [name for name in found if re.fullmatch(r"layer\d+\.\d+\.conv\d\.weight", name)][-1]
    features = found[last].shape[0]
    inner = {name: tensor for name, tensor in found.items() if not TRUNK.match(name)}
    notes = []
    own = linear_layers(outside)
    if own and linear_layers(inner) and any(shape[1] == features for shape in own.values()):
        for name in [name for name in inner if name.startswith("fc.")]:
            del found[name], inner[name]
        notes.append(
            f"the classifier is '{next(iter(own))}'; the one inside of the backbone, 'fc', was left out"
        )
    heads = linear_layers(inner) | own
    if len(heads) > 1 and _is_chain(list(heads.values()), features):
        found.update({name: outside.pop(name) for name in list(outside) if name.rpartition(".")[0] in heads})
        return notes
    if len(heads) > 1:
        listed = ", ".join(f"{name} {list(shape[:2])}" for name, shape in heads.items())
        raise CheckpointError(f"{path} has several layers that may be its head ({listed}): {_NO_TRACE}")
    if not heads or next(iter(heads.values()))[1] != features:
        return notes
    (head,) = heads
    places = outside if head in own else found
    for role in ("weight", "bias"):
        tensor = places.pop(f"{head}.{role}", None)
        if tensor is not None:
            found[f"fc.{role}"] = tensor.flatten(1) if role == "weight" else tensor
    if "fc.bias" not in found:
        found["fc.bias"] = torch.zeros(len(found["fc.weight"]))
        notes.append(f"the classifier '{head}' has no bias, so it is zero")
    if head != "fc" and not notes:
        notes.append(f"the classifier is '{head}'")
    return notes


def _is_chain(shapes: list[tuple[int, ...]], features: int) -> bool:
    """Whether each layer reads what the one before it writes, the first one the features (fastai pools them twice)."""
    reads = [shape[1] for shape in shapes]
    return reads[0] in {features, 2 * features} and reads[1:] == [shape[0] for shape in shapes[:-1]]


def _leave_out(outside: Mapping[str, Tensor], path: Path) -> list[str]:
    """Note what lies outside of the network.

    Raises:
        CheckpointError: it normalizes the images, which must not be lost.
    """
    for name, tensor in outside.items():
        if _NORMALIZATION.fullmatch(name) and tensor.numel() in {1, 3}:
            values = ",".join(f"{value:g}" for value in tensor.flatten().tolist())
            option = "--std" if name.endswith("std") else "--mean"
            raise CheckpointError(
                f"{path} normalizes the images inside of the network ('{name}' is {values}), which weights alone do "
                f"not bring along: pass the network with --onnx, or save it without that layer and pass {option} "
                f"{values}"
            )
    return [f"left out, because it lies outside of the network: {listing(outside)}"] if outside else []


def _fold_biases(found: dict[str, Tensor]) -> None:
    """Move the bias of each convolution into the mean of the norm behind it, which takes it away again."""
    for name in [name for name in found if name.endswith(".bias")]:
        conv = name.removesuffix(".bias")
        norm = (
            re.sub(r"conv(\d)$", r"bn\1", conv)
            if "conv" in conv
            else conv.replace("downsample.0", "downsample.1")
        )
        mean = found.get(f"{norm}.running_mean")
        if norm != conv and mean is not None and _IN_TRUNK.fullmatch(name):
            found[f"{norm}.running_mean"] = mean - found.pop(name)


def _prefix(names: Iterable[str], path: Path, wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """The prefix of the network's names, and those of other networks that were not asked for."""
    every = set(names)
    ends = (name.removesuffix(stem) for name in every for stem in _STEMS if name.endswith(stem))
    prefixes = sorted(
        end for end in set(ends) if (not end or end.endswith(".")) and f"{end}layer1.0.conv1.weight" in every
    )
    if wanted is not None and any(name.startswith(f"{wanted}.") for name in every):
        others = (prefix for prefix in prefixes if not prefix.startswith(f"{wanted}."))
        return f"{wanted}.", tuple(filter(None, others))
    if len(prefixes) > 1:
        under = listing(f"'{prefix.removesuffix('.')}'" for prefix in prefixes)
        raise CheckpointError(
            f"{path} holds {len(prefixes)} networks (under {under}): pass the one you mean as --entry"
        )
    return prefixes[0] if prefixes else "", ()


def _rename(name: str) -> str:
    name = re.sub(r"^linear\.", "fc.", name)
    return re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name)


def _float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    if tensor.device.type == "meta":
        raise CheckpointError(
            f"{path} holds '{name}' without its values (a meta tensor): save the loaded model"
        )
    if tensor.layout != torch.strided or not tensor.dtype.is_floating_point:
        kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
        raise CheckpointError(
            f"{path} holds '{name}' as {kind}: pass the float weights, not quantized or packed ones"
        )
    return tensor.detach().to(torch.float32, copy=True).contiguous()

"""A training program's state_dict in one form: torchvision's names, float32, on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rescompile.errors import CheckpointError
from rescompile.sources.entries import listing

_COUNTERS = {"num_batches_tracked", "n_averaged"}
_STEMS = ("conv1.weight", "conv1.0.weight")
_BODY = re.compile(r"(conv1|bn1|layer\d+)\.")
_HEADS = ("fc", "linear", "head", "classifier", "last_linear", "cls", "logits")
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Places of torchvision's modules in ``nn.Sequential(*resnet.children())``."""
_PREFERRED = {frozenset({"encoder_q.", "encoder_k."}): "encoder_q."}
"""MoCo's query encoder is the network; the other is its average."""


def canonical(
    tensors: Mapping[str, Tensor], path: Path, entry: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """``tensors`` as float32 with torchvision's names, without counters; and notes on what was left out.

    A common prefix (``module.``, ``model.``, ``backbone.`` …) is removed. The names of akamaster, pytorch-cifar,
    Hugging Face, mmpretrain, fastai and ``Sequential(*children)`` are renamed; other networks keep their names.

    Raises:
        CheckpointError: several networks in one file, two tensors with one name, or a type that is not float.
    """
    renamed = _renamed({name: tensor for name, tensor in tensors.items() if not _is_counter(name)}, path)
    prefixes = _prefixes(renamed)
    prefix = _chosen(prefixes, path, entry)
    renamed = {
        name: tensor
        for name, tensor in renamed.items()
        if not any(name.startswith(other) for other in prefixes if other and other != prefix)
    }
    if prefix is None:
        return {name: _float32(name, tensor, path) for name, tensor in renamed.items()}, []
    found: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        new = re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name.removeprefix(prefix))
        inside = name.startswith(prefix) and _BODY.match(new)
        target = found if inside else outside
        if new in target:
            raise CheckpointError(
                f"{path} holds '{new}' twice, under two spellings: save the weights of one model"
            )
        target[new] = tensor
    own = {name.rpartition(".")[0] for name in renamed if not name.startswith(prefix or ".")}
    notes = _add_head(found, outside, prefix, own, path)
    return {name: _float32(name, tensor, path) for name, tensor in found.items()}, notes


def head_like(names: Iterable[str]) -> list[str]:
    """The names that a classifier could have."""
    return [name for name in names if any(part in _HEADS for part in name.split("."))]


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _renamed(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Hugging Face's and Sequential's names as torchvision's; a wrapper's prefix stays."""
    found: dict[str, Tensor] = {}
    sequence = _sequence_prefix(tensors)
    for name, tensor in tensors.items():
        new = _from_hugging_face(name)
        if sequence is not None and name.startswith(sequence):
            first, _, rest = name.removeprefix(sequence).partition(".")
            new = f"{_SEQUENTIAL[first]}.{rest}" if first in _SEQUENTIAL else name
        if new in found:
            raise CheckpointError(
                f"{path} holds '{new}' twice, under two spellings: save the weights of one model"
            )
        found[new] = tensor
    return found


def _from_hugging_face(name: str) -> str:
    name = re.sub(r"\bembedder\.embedder\.convolution\.", "conv1.", name)
    name = re.sub(r"\bembedder\.embedder\.normalization\.", "bn1.", name)
    stage = re.search(r"\bencoder\.stages\.(\d+)\.layers\.(\d+)\.", name)
    if stage is None:
        return name
    front, rest = name[: stage.start()], name[stage.end() :]
    rest = rest.replace("shortcut.convolution.", "downsample.0.").replace(
        "shortcut.normalization.", "downsample.1."
    )
    inner = re.match(r"layer\.(\d+)\.(convolution|normalization)\.", rest)
    if inner is not None:
        kind = "conv" if inner[2] == "convolution" else "bn"
        rest = f"{kind}{int(inner[1]) + 1}.{rest[inner.end() :]}"
    return f"{front}layer{int(stage[1]) + 1}.{stage[2]}.{rest}"


def _sequence_prefix(names: Iterable[str]) -> str | None:
    every = set(names)
    ends = [name.removesuffix("4.0.conv1.weight") for name in every if name.endswith("4.0.conv1.weight")]
    fits = [end for end in ends if (not end or end.endswith(".")) and f"{end}0.weight" in every]
    return fits[0] if len(fits) == 1 else None


def _prefixes(names: Iterable[str]) -> list[str]:
    """What stands in front of ``conv1`` and ``layer1``, for every network with such names."""
    every = set(names)
    ends = {name.removesuffix(stem) for name in every for stem in _STEMS if name.endswith(stem)}
    return sorted(
        end for end in ends if (not end or end.endswith(".")) and f"{end}layer1.0.conv1.weight" in every
    )


def _chosen(prefixes: list[str], path: Path, entry: str | None) -> str | None:
    if entry is not None and (called := [end for end in prefixes if entry in end.split(".")]):
        prefixes = called
    if len(prefixes) > 1:
        last = {f"{end.rstrip('.').rpartition('.')[2]}.": end for end in prefixes}
        preferred = _PREFERRED.get(frozenset(last))
        if preferred:
            return last[preferred]
        under = listing(f"'{prefix}'" for prefix in prefixes)
        name = prefixes[0].rstrip(".").rpartition(".")[2]
        raise CheckpointError(
            f"{path} holds {len(prefixes)} networks (under {under}): choose one with --weights {path.name}#{name}"
        )
    return prefixes[0] if prefixes else None


def _add_head(
    body: dict[str, Tensor], outside: Mapping[str, Tensor], prefix: str, apart: set[str], path: Path
) -> list[str]:
    """Add the classifier as ``fc`` (or ``fc.0``, ``fc.3`` … where it has several layers), and say what is left out.

    ``apart`` names the modules outside of the prefix: one there is the user's own and goes before one inside.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in outside.items():
        modules.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = tensor
    heads = {name: parts for name, parts in modules.items() if _is_head(name, parts, prefix)}
    width = _width(body)
    alternatives = {_sequence(name): name for name in reversed(heads)}
    readers = [
        name
        for name in reversed(alternatives.values())
        if heads[name]["weight"].ndim > 1 and heads[name]["weight"].shape[1] == width
    ]
    notes = []
    if len(readers) > 1:
        own = [name for name in readers if name in apart]
        if len(own) != 1:
            raise CheckpointError(
                f"{path} holds {len(readers)} classifiers ({listing(readers)}), which all read the network's {width} "
                "features: save the weights without those that you do not use"
            )
        others = {_sequence(name) for name in readers if name != own[0]}
        heads = {name: parts for name, parts in heads.items() if _sequence(name) not in others}
        notes.append(f"'fc' was left out: '{own[0]}' outside of the backbone is the classifier")
    left = [
        f"{name}.{last}".removeprefix(".")
        for name, parts in modules.items()
        if name not in heads and name not in readers
        for last in parts
    ]
    if left:
        advice = _if_normalizing(left, outside)
        notes.append(f"the file holds {listing(left)} outside of the network, which were left out{advice}")
    together = len(heads) > 1 and len({_sequence(name) for name in heads}) == 1
    for index, (name, parts) in enumerate(heads.items()):
        new = "fc" if len(heads) == 1 else f"fc.{name.rpartition('.')[2] if together else index}"
        for last, tensor in parts.items():
            body[f"{new}.{last}"] = tensor.flatten(1) if tensor.ndim == 4 else tensor
    weight = body.get("fc.weight")
    if weight is not None and weight.ndim == 2 and "fc.bias" not in body:
        body["fc.bias"] = torch.zeros(weight.shape[0])
        notes.append("the classifier has no bias: zeros are taken")
    return notes


def _sequence(name: str) -> str:
    """The Sequential that a module is in, or its own name."""
    parent, _, last = name.rpartition(".")
    return parent if parent and last.isdigit() else name


def _if_normalizing(left: list[str], outside: Mapping[str, Tensor]) -> str:
    """What to pass where the network normalizes its input itself."""
    values = {name.rpartition(".")[2]: outside[name].flatten().tolist() for name in left if name in outside}
    if not {"mean", "std"} <= values.keys() or len(values["mean"]) > 4:
        return ""
    mean, std = (",".join(f"{value:g}" for value in values[key]) for key in ("mean", "std"))
    return f"; the network seems to normalize its input itself, so pass --mean {mean} --std {std}"


def _is_head(module: str, parts: Mapping[str, Tensor], prefix: str) -> bool:
    weight = parts.get("weight")
    if weight is None or not (
        weight.ndim == 2 or weight.shape[2:] == (1, 1) or "running_mean" in parts or module == "fc"
    ):
        return False
    names = module.split(".")
    return any(name in _HEADS for name in names) or (
        names[0].isdigit() and (not prefix or prefix[0].isdigit())
    )


def _width(body: Mapping[str, Tensor]) -> int:
    widths = [t.shape[0] for name, t in body.items() if t.ndim == 4 and name.startswith("layer")]
    return max(widths, default=0)


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

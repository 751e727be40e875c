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

    A common prefix (``module.``, ``model.``, ``backbone.`` …) is removed. The names of akamaster, pytorch-cifar, Hugging
    Face, mmpretrain, fastai and ``Sequential(*children)`` are renamed; other networks keep their names.

    Raises:
        CheckpointError: several networks in one file, two tensors with one name, or a type that is not float.
    """
    renamed = _renamed({name: tensor for name, tensor in tensors.items() if not _is_counter(name)}, path)
    prefix = _prefix(renamed, path, entry)
    if prefix is None:
        return {name: _float32(name, tensor, path) for name, tensor in renamed.items()}, []
    found: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        new = re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name.removeprefix(prefix))
        inside = name.startswith(prefix) and _BODY.match(new)
        target = found if inside else outside
        if new in target:
            raise CheckpointError(f"{path} holds '{new}' twice, under two spellings: save the weights of one model")
        target[new] = tensor
    notes = _add_head(found, outside, prefix, path)
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
            raise CheckpointError(f"{path} holds '{new}' twice, under two spellings: save the weights of one model")
        found[new] = tensor
    return found


def _from_hugging_face(name: str) -> str:
    name = re.sub(r"\bembedder\.embedder\.convolution\.", "conv1.", name)
    name = re.sub(r"\bembedder\.embedder\.normalization\.", "bn1.", name)
    stage = re.search(r"\bencoder\.stages\.(\d+)\.layers\.(\d+)\.", name)
    if stage is None:
        return name
    front, rest = name[: stage.start()], name[stage.end() :]
    rest = rest.replace("shortcut.convolution.", "downsample.0.").replace("shortcut.normalization.", "downsample.1.")
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


def _prefix(names: Iterable[str], path: Path, entry: str | None) -> str | None:
    """What is in front of ``conv1`` and ``layer1``; None where there are no such names."""
    every = set(names)
    ends = (name.removesuffix(stem) for name in every for stem in _STEMS if name.endswith(stem))
    prefixes = sorted(
        end for end in set(ends) if (not end or end.endswith(".")) and f"{end}layer1.0.conv1.weight" in every
    )
    if entry is not None and (chosen := [end for end in prefixes if entry in end.split(".")]):
        prefixes = chosen
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


def _add_head(body: dict[str, Tensor], outside: Mapping[str, Tensor], prefix: str, path: Path) -> list[str]:
    """Add the classifier as ``fc`` (or ``fc.0``, ``fc.1`` … where it has several layers), and say what is left out."""
    mine = {name: tensor for name, tensor in outside.items() if _is_head(name, prefix)}
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in mine))
    width = _width(body)
    readers = [each for each in modules if _reads(mine, each, width)]
    notes = []
    if len(readers) > 1:
        own = [each for each in readers if each != "fc"]
        if len(own) != 1:
            raise CheckpointError(
                f"{path} holds {len(readers)} classifiers ({listing(readers)}), which all read the network's {width} "
                "features: save the weights without those that you do not use"
            )
        modules = [each for each in modules if each not in readers or each == own[0]]
        notes.append(f"'fc' was left out: '{own[0]}' outside of the backbone is the classifier")
    left = [name for name in outside if name.rpartition(".")[0] not in modules or name not in mine]
    left = [name for name in left if name.rpartition(".")[0] not in readers]
    if left:
        notes.append(f"the file holds {listing(left)} outside of the network, which were left out")
    for index, module in enumerate(modules):
        new = "fc" if len(modules) == 1 else f"fc.{_place(module, index)}"
        for name, tensor in mine.items():
            if name.rpartition(".")[0] == module:
                last = name.rpartition(".")[2]
                flat = tensor.flatten(1) if last == "weight" and tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
                body[f"{new}.{last}"] = flat
    weight = body.get("fc.weight")
    if weight is not None and weight.ndim == 2 and "fc.bias" not in body:
        body["fc.bias"] = torch.zeros(weight.shape[0])
        notes.append("the classifier has no bias: zeros are taken")
    return notes


def _is_head(name: str, prefix: str) -> bool:
    parts = name.split(".")
    return any(part in _HEADS for part in parts) or (parts[0].isdigit() and (not prefix or prefix[0].isdigit()))


def _place(module: str, index: int) -> int:
    last = module.rpartition(".")[2]
    return int(last) if last.isdigit() else index


def _width(body: Mapping[str, Tensor]) -> int:
    widths = [t.shape[0] for name, t in body.items() if t.ndim == 4 and name.startswith("layer")]
    return max(widths, default=0)


def _reads(tensors: Mapping[str, Tensor], module: str, width: int) -> bool:
    weight = tensors.get(f"{module}.weight")
    return weight is not None and weight.ndim in (2, 4) and weight.shape[1] == width


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

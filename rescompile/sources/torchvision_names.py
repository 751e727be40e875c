"""A training program's state_dict in one form: torchvision's names, float32, on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rescompile.errors import CheckpointError

ENTRIES = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
"""Entries under which training programs nest the state_dict, the preferred ones first."""
_ADVICE = f"pass a state_dict, or one nested under {', '.join(ENTRIES)}"
_COUNTERS = {"num_batches_tracked", "n_averaged"}
_DEEPEST = 4
_STEMS = ("conv1.weight", "conv1.0.weight")


def state_dict_in(payload: object, path: Path) -> dict[str, Tensor]:
    """The tensors of ``payload``, which is a state_dict or has one under one of ``ENTRIES``.

    Raises:
        CheckpointError: there is no state_dict, or it has no tensors.
    """
    for _ in range(_DEEPEST):
        if not isinstance(payload, Mapping):
            break
        nested = next((name for name in ENTRIES if isinstance(payload.get(name), Mapping)), None)
        if nested is None:
            break
        payload = payload[nested]
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{path} holds a {type(payload).__name__}, not a state_dict: {_ADVICE}")
    tensors = {
        name: value for name, value in payload.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            f"{path} holds no weights (its entries are {listing(map(str, payload))}): {_ADVICE}"
        )
    return tensors


def canonical(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``tensors`` as float32 with torchvision's names, without counters such as ``num_batches_tracked``.

    A common prefix (``module.``, ``model.``, ``backbone.`` …) is removed; akamaster's ``linear`` and ``shortcut`` are
    renamed.

    Raises:
        CheckpointError: several networks in one file, two tensors with one name, or a type that is not float.
    """
    prefix = _prefix(tensors, path)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = _rename(name.removeprefix(prefix))
        if new.rpartition(".")[2] in _COUNTERS:
            continue
        if new in found:
            raise CheckpointError(
                f"{path} holds '{new}' twice, under two spellings: save the weights of one model"
            )
        found[new] = _float32(new, tensor, path)
    return found


def listing(names: Iterable[str], limit: int = 3) -> str:
    """The first ``limit`` names and the number of the others."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more if every else "none"


def _prefix(names: Iterable[str], path: Path) -> str:
    every = set(names)
    ends = (name.removesuffix(stem) for name in every for stem in _STEMS if name.endswith(stem))
    prefixes = sorted(
        end for end in set(ends) if (not end or end.endswith(".")) and f"{end}layer1.0.conv1.weight" in every
    )
    if len(prefixes) > 1:
        under = listing(f"'{prefix}'" for prefix in prefixes)
        raise CheckpointError(
            f"{path} holds {len(prefixes)} networks (under {under}): save the one that you want"
        )
    return prefixes[0] if prefixes else ""


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

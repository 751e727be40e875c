"""The state_dict that a checkpoint file holds, among everything that training programs keep beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rescompile.errors import CheckpointError
from rescompile.sources.inert_pickle import StandIn
from rescompile.sources.safe_loading import HOW_TO_SAVE

_ADVICE = "pass a state_dict, or a file that holds one"
_DEEPEST = 4
_PREFERRED = (("state_dict_ema", "state_dict"), ("model_ema", "model"))
"""Entries of timm and torchvision: their own loaders take the averaged weights."""


def split_entry(path: Path) -> tuple[Path, str | None]:
    """The file and the entry of ``FILE#ENTRY``; a file whose name has a ``#`` is itself."""
    name, mark, entry = path.name.rpartition("#")
    if not mark or not name or path.exists():
        return path, None
    return path.with_name(name), entry


def state_dict_in(
    payload: object, path: Path, entry: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the one network in ``payload``, and notes on where they were.

    Raises:
        CheckpointError: there is no network, or several and ``entry`` does not choose one.
    """
    found = dict(_networks(payload))
    if not found:
        raise CheckpointError(_why_none(payload, path))
    if entry is not None and (chosen := [name for name in found if _is_called(name, entry)]):
        found = {chosen[0]: found[chosen[0]]}
    preferred = next((best for best, other in _PREFERRED if found.keys() == {best, other}), None)
    if len(found) > 1 and preferred is None:
        names = sorted(found)
        raise CheckpointError(
            f"{path} holds {len(found)} networks, under {listing((repr(name) for name in names), 6)}: choose one with "
            f"--weights {path.name}#{names[0]}"
        )
    name = preferred or next(iter(found))
    notes = []
    if preferred:
        other = next(each for each in found if each != preferred)
        notes = [
            f"the weights are the averaged ones of the entry '{preferred}', as the program that wrote them loads them; "
            f"--weights {path.name}#{other} takes '{other}'"
        ]
    elif name:
        notes = [f"the weights are the entry '{name}' of the file"]
    return _without_wrapper(found[name]), notes


def listing(names: Iterable[str], limit: int = 3) -> str:
    """The first ``limit`` names and the number of the others."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more if every else "none"


def _is_called(name: str, entry: str) -> bool:
    return name == entry or name.rpartition(".")[2] == entry


def _networks(payload: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every network by its place; where none has a convolution, every dictionary of tensors."""
    every = list(_dictionaries(payload, "", _DEEPEST))
    with_convolutions = [(name, held) for name, held in every if any(t.ndim == 4 for t in held.values())]
    yield from with_convolutions or every


def _dictionaries(payload: object, name: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries that name tensors as modules do, with a point; an optimizer's state has none."""
    if isinstance(payload, Mapping):
        held = {
            key: value for key, value in payload.items() if isinstance(key, str) and isinstance(value, Tensor)
        }
        if any("." in key for key in held):
            yield name, held
    inner = (
        payload.items()
        if isinstance(payload, Mapping)
        else enumerate(payload)
        if isinstance(payload, (list, tuple)) and len(payload) < 10
        else ()
    )
    for key, value in inner:
        if depth and isinstance(value, (Mapping, list, tuple)) and not str(key).startswith("optim"):
            yield from _dictionaries(value, f"{name}.{key}".removeprefix("."), depth - 1)


def _without_wrapper(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without counters, and with pruned weights multiplied by their masks, as torch.nn.utils.prune keeps them."""
    result: dict[str, Tensor] = {}
    for name, tensor in held.items():
        if name.endswith("_mask") and f"{name[:-5]}_orig" in held:
            continue
        if name.endswith("_orig") and f"{name[:-5]}_mask" in held:
            result[name[:-5]] = tensor * held[f"{name[:-5]}_mask"]
        else:
            result[name] = tensor
    return result


def _stand_ins(payload: Any, depth: int = 3) -> Iterator[StandIn]:
    if isinstance(payload, StandIn):
        yield payload
    if depth:
        for value in payload.values() if isinstance(payload, Mapping) else ():
            yield from _stand_ins(value, depth - 1)


def _why_none(payload: object, path: Path) -> str:
    objects = sorted(_stand_ins(payload), key=lambda found: not found.is_module)
    if objects and objects[0].is_module:
        name = objects[0].name
        return f"{path} is a whole pickled model (it needs the class {name}), not a state_dict: {HOW_TO_SAVE}"
    if objects:
        return (
            f"{path} holds the Python object {objects[0].name} instead of tensors; unpickling it can run any code, "
            f"so it was not loaded: {HOW_TO_SAVE}"
        )
    if not isinstance(payload, Mapping):
        return f"{path} holds a {type(payload).__name__}, not a state_dict: {_ADVICE}"
    return f"{path} holds no weights (its entries are {listing(map(str, payload))}): {_ADVICE}"

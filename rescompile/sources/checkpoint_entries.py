"""The entry of a checkpoint that holds the network: beside it lie averages of the weights, optimizers and options.

One network is taken wherever it lies. Of several, averaged weights are taken where the program that wrote the file
takes them itself: timm's loader prefers ``state_dict_ema``, torchvision's evaluates ``model_ema``. Any other choice is
the user's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rescompile.errors import CheckpointError
from rescompile.sources.inert_pickle import stand_ins

AVERAGES = {"state_dict": "state_dict_ema", "model": "model_ema"}
"""Entries of raw weights, and of their average, in files of timm and of torchvision's references."""
_DEEPEST = 4
_FEWEST = 3
"""Weights of convolutions that make a network; an optimizer's state is left out by its name."""
_OTHERS = re.compile(r"optim|sched|scaler|momentum|exp_avg|callbacks|loops|hyper_parameters|queue")


@dataclass(frozen=True)
class Entry:
    """A state_dict in a file, and where it lies."""

    tensors: dict[str, Tensor]
    path: str
    """Names of the entries that lead to it, joined by dots; empty for the file itself."""
    notes: tuple[str, ...] = ()


def entry_of(payload: object, path: Path, wanted: str | None = None, *, of_any_kind: bool = False) -> Entry:
    """The network in ``payload``, or the one in the entry ``wanted`` (or the only entry, whose names begin so).

    With ``of_any_kind`` it may have few convolutions, as a transformer has, or none.

    Raises:
        CheckpointError: there is none, or several and no rule says which one is meant.
    """
    found = {entry.path: entry for entry in _networks(payload)}
    if not found and of_any_kind:
        found = {entry.path: entry for entry in _networks(payload, is_network=_has_weights)}
    if not found:
        raise CheckpointError(f"{path} holds {_what_instead(payload)}")
    if wanted in found:
        return found[wanted]
    if wanted is not None and len(found) == 1:
        (entry,) = found.values()
        if any(name.startswith(f"{wanted}.") for name in entry.tensors):
            return _noted(entry, found)  # the beginning of names inside of the one entry
    names = ", ".join(f"'{name}'" for name in found)
    if wanted is not None and (len(found) > 1 or "" not in found):
        raise CheckpointError(
            f"{path} has no network in '{wanted}'; its networks are in {names}: pass one as --entry"
        )
    if len(found) == 1:
        return _noted(next(iter(found.values())), found)
    averages = [average for raw, average in AVERAGES.items() if set(found) == {raw, average}]
    if not averages:
        raise CheckpointError(
            f"{path} holds {len(found)} networks, in {names}: pass the one you mean as --entry"
        )
    return _noted(found[averages[0]], found)


def _noted(entry: Entry, found: Mapping[str, Entry]) -> Entry:
    if not entry.path:
        return entry
    others = [name for name in found if name != entry.path]
    beside = f", the averaged weights; the raw ones are in '{others[0]}'" if others else ""
    return Entry(entry.tensors, entry.path, (f"the weights are those of the entry '{entry.path}'{beside}",))


def _has_convolutions(tensors: Mapping[str, Tensor]) -> bool:
    return sum(tensor.ndim == 4 for tensor in tensors.values()) >= _FEWEST


def _has_weights(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.ndim > 1 for tensor in tensors.values())


def _networks(
    value: object,
    path: str = "",
    depth: int = 0,
    is_network: Callable[[Mapping[str, Tensor]], bool] = _has_convolutions,
) -> Iterator[Entry]:
    """Every state_dict in ``value`` whose tensors are a network."""
    if isinstance(value, (list, tuple)):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    tensors = {
        name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Tensor)
    }
    if is_network(tensors):
        yield Entry(tensors, path)
        return
    for name, item in value.items():
        if not _OTHERS.search(str(name)):
            yield from _networks(item, f"{path}.{name}" if path else str(name), depth + 1, is_network)


def _what_instead(payload: object) -> str:
    origins = list(stand_ins(payload))
    models = [
        origin
        for origin in origins
        if not origin.startswith(("argparse.", "pathlib.", "numpy.", "datetime."))
    ]
    if models:
        return (
            f"a whole pickled model (it needs the class {models[0]}), not a state_dict, and nothing of it was run: in "
            "the program that made it, save the weights alone with torch.save(model.state_dict(), 'weights.pth'), and "
            "pass that file; or pass the live model to rescompile.build"
        )
    if isinstance(payload, Mapping):
        names = ", ".join(map(str, list(payload)[:3]))
        more = f" and {len(payload) - 3} more" if len(payload) > 3 else ""
        return (
            f"no state_dict of a network of convolutions (its entries are {names or 'none'}{more}): pass one, and for "
            "a network of another kind its --model beside it"
        )
    return f"a {type(payload).__name__}, not a state_dict: pass a state_dict"

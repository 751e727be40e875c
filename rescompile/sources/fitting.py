"""A file's state_dict for a module that is made already: prefixes that wrappers add are found by the module's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from rescompile.errors import CheckpointError
from rescompile.sources.checkpoint_entries import entry_of
from rescompile.sources.torch_file import read_payload
from rescompile.wording import listing

_COMPILED = "_orig_mod."
"""What torch.compile puts into names, at the beginning or where it compiled a part."""
_WRAPPERS = ("module", "model", "net", "network")
"""Names that programs give to the network inside of what they save."""
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class OwnWeights:
    """The tensors of the user's file, by the names in it."""

    tensors: Mapping[str, Tensor]
    path: str
    notes: tuple[str, ...] = ()
    """Which entry of the file was taken, what was left out."""

    @property
    def bare(self) -> dict[str, Tensor]:
        """The tensors without what wrappers put in front of the names of all weights."""
        found = dict(self.tensors)
        while (start := _wrapper(found)) is not None:
            found = {
                name.removeprefix(start): tensor for name, tensor in found.items() if name.startswith(start)
            }
        return found


def _wrapper(tensors: Mapping[str, Tensor]) -> str | None:
    """The wrapper's name, with a dot, in front of every weight of ``tensors``; None where there is none."""
    starts = {name.partition(".")[0] for name, tensor in tensors.items() if tensor.ndim > 1}
    (start, *others) = starts or {""}
    return f"{start}." if not others and start in _WRAPPERS else None


def read_own_weights(path: str) -> OwnWeights:
    """The weights of the one network in the file ``path``.

    Raises:
        CheckpointError: the file cannot be read, or does not hold the weights of one network.
    """
    entry = entry_of(read_payload(Path(path)), Path(path), of_any_kind=True)
    return OwnWeights(
        {name.replace(_COMPILED, ""): tensor for name, tensor in entry.tensors.items()}, path, entry.notes
    )


def load_into(module: nn.Module, weights: OwnWeights, network: str) -> tuple[str, ...]:
    """Load ``weights`` into ``module``, which the messages call ``network``; sentences about what was left out.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to no part of the module; or several parts
            of the file fit it.
    """
    expected = module.state_dict()
    needed = [name for name in expected if not name.endswith(_COUNTER)]
    beginning = _beginning(weights, needed, network)
    found = _under(weights, beginning)
    left_out = [name for name in weights.tensors if not name.startswith(beginning)]
    _check_fit(found, expected, needed, weights.path, network)
    try:
        module.load_state_dict({name: found[name] for name in expected if name in found}, strict=False)
    except RuntimeError as error:  # a module's own rules for its weights
        raise CheckpointError(
            f"{weights.path} does not fit {network} ({str(error).partition(chr(10))[0][:200]}): pass its own weights"
        ) from None
    if not left_out:
        return weights.notes
    return (*weights.notes, f"of {Path(weights.path).name} the weights under '{beginning[:-1]}' are taken, not "
            f"{listing(left_out)}")  # fmt: skip


def weights_for(module: nn.Module, weights: OwnWeights, network: str) -> dict[str, Tensor]:
    """The tensors of ``weights`` that ``module`` would take, by its names, whatever their shapes.

    Raises:
        CheckpointError: several parts of the file fit it.
    """
    needed = [name for name in module.state_dict() if not name.endswith(_COUNTER)]
    return _under(weights, _beginning(weights, needed, network))


def _under(weights: OwnWeights, beginning: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(beginning): tensor
        for name, tensor in weights.tensors.items()
        if name.startswith(beginning)
    }


def _beginning(weights: OwnWeights, needed: list[str], network: str) -> str:
    """What stands in front of the names that the module needs, in the file."""
    if not needed:
        return ""
    first, names = needed[0], weights.tensors.keys()
    ends = (name for name in names if name == first or name.endswith(f".{first}"))
    starts = {name.removesuffix(first): 0 for name in ends}
    whole = [start for start in starts if all(f"{start}{name}" in names for name in needed)]
    if "" in whole or len(whole) == 1:
        return "" if "" in whole else whole[0]
    if whole:
        raise CheckpointError(
            f"{weights.path} holds the weights of {network} {len(whole)} times, under "
            f"{listing(f'{start[:-1]!r}' for start in whole)}: save the one you mean alone"
        )
    # none fits: the most alike one, so that the message names what differs
    return max(("", *starts), key=lambda start: sum(f"{start}{name}" in names for name in needed))


def _check_fit(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], needed: list[str], path: str, network: str
) -> None:
    missing = [name for name in needed if name not in found]
    unexpected = [name for name in found if name not in expected and not name.endswith(_COUNTER)]
    misshapen = [
        f"{name} ({list(found[name].shape)} instead of {list(expected[name].shape)})"
        for name in needed
        if name in found and isinstance(expected[name], Tensor) and found[name].shape != expected[name].shape
    ]
    parts = [
        f"{word}: {listing(names)}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if parts:
        raise CheckpointError(
            f"{path} does not fit {network}; {'; '.join(parts)}: pass its own weights, or the live module with your "
            "changes to rescompile.build (--model module:package.file:function)"
        )

"""Checkpoints in several files, as Hugging Face saves large ones: an index names the file of each tensor."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rescompile.errors import CheckpointError, reason_of
from rescompile.files import sha256_of
from rescompile.wording import brief, listing

SUFFIX = ".index.json"
_PART = re.compile(r"(.+)-\d{5}-of-(?!00001)\d{5}(\.\w+)")
_LARGEST = 1 << 24
_AGAIN = "save or download the checkpoint again"


def is_index(path: Path) -> bool:
    """Whether ``path`` is named like an index of several files."""
    return path.name.endswith(SUFFIX)


def refuse_part(path: Path) -> None:
    """Refuse one file of several, which holds a part of a network.

    Raises:
        CheckpointError: ``path`` is named like one.
    """
    part = _PART.fullmatch(path.name)
    if part is not None:
        raise CheckpointError(
            f"{path} is one of several files of a checkpoint: pass their index, {part[1]}{part[2]}{SUFFIX}"
        )


def read_parts(path: Path, read: Callable[[Path], object]) -> dict[str, object]:
    """The tensors that the index ``path`` names, each from its file, which ``read`` reads.

    Raises:
        CheckpointError: the index or a file cannot be read, or a tensor is not where the index says.
    """
    places = _places(path)
    found: dict[str, object] = {}
    for name in dict.fromkeys(places.values()):
        held = read(path.with_name(name))
        wanted = [tensor for tensor, place in places.items() if place == name]
        lacking = [t for t in wanted if not isinstance(held, Mapping) or t not in held]
        if lacking or not isinstance(held, Mapping):
            raise CheckpointError(
                f"{path.with_name(name)} lacks {brief(listing(lacking))}, which {path.name} expects there: {_AGAIN}"
            )
        found.update((tensor, held[tensor]) for tensor in wanted)
    return found


def hash_of_parts(path: Path) -> str:
    """SHA-256 over the hashes of the files that the index ``path`` names, in order of their names."""
    names = sorted(set(_places(path).values()))
    return hashlib.sha256("".join(sha256_of(path.with_name(name)) for name in names).encode()).hexdigest()


def _places(path: Path) -> dict[str, str]:
    """Tensor to file name."""
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} is too large for an index: {_AGAIN}")
        places = json.loads(path.read_text("utf-8"))["weight_map"]
        files = set(places.values())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: check the path of the weights") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not an index of a checkpoint ({brief(reason_of(error))}): {_AGAIN}"
        ) from None
    # only files beside the index: it may come from anywhere
    strange = [name for name in files if not isinstance(name, str) or Path(name).name != name or not name]
    if strange or not files:
        raise CheckpointError(f"{path} names no files that may lie beside it: {_AGAIN}")
    return dict(places)

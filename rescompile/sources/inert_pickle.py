"""Unpickles a checkpoint with unknown side objects: tensors are loaded, every other object is a stand-in.

Training programs store schedulers, paths, losses and options beside the weights. A pickle names classes and functions
and has them called. Here only the few that make tensors and plain containers are what they say. Any other name gives a
class of its own whose objects do nothing: they take all arguments, state, items and elements, and keep none of them.
So nothing of the file runs, whatever it names.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rescompile.sources.checkpoint_size import refuse_inflated, refuse_large_memo


class StandIn:
    """An object that the file holds and that was not made."""

    origin = ""
    """Module and name of its class or function."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        """Take all arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        return

    def __setstate__(self, state: object) -> None:
        return

    def __setitem__(self, key: object, value: object) -> None:
        return

    def append(self, item: object) -> None:
        """Take an element of a list."""

    def extend(self, items: object) -> None:
        """Take elements of a list."""

    def add(self, item: object) -> None:
        """Take an element of a set."""

    def __call__(self, *_: object, **__: object) -> StandIn:
        """Do nothing, as a method that the pickle calls."""
        return self

    def __hash__(self) -> int:
        return id(self)


def _latin1(text: object, encoding: object = "latin1") -> bytes:
    """The bytes that NumPy pickles as text; another encoding would import a module by its name."""
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise pickle.UnpicklingError("bytes in an unusual encoding")
    return text.encode("latin1")


class _Call:
    """A function of torch that the file may call but not change: BUILD would set attributes of the function itself."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        return


_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _latin1,
    "torch.Size": torch.Size,
    "torch._utils._rebuild_tensor": _Call(torch._utils._rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Call(torch._utils._rebuild_tensor_v2),
    "torch._utils._rebuild_parameter": _Call(torch._utils._rebuild_parameter),
    **_DTYPES,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, **options: Any) -> None:
        """Raise ValueError for a pickle that would fill the memory with a table of its objects."""
        refuse_large_memo(file)
        super().__init__(file, **options)

    def find_class(self, module: str, name: str) -> Any:
        """The meaning of a name in the file: one of ``_KNOWN``, a tensor's storage, or a stand-in."""
        origin = f"{module}.{name}"
        if origin in _KNOWN:
            return _KNOWN[origin]
        if module in {"torch", "torch.storage"} and name.endswith("Storage") and name.isidentifier():
            return super().find_class(module, name)
        if origin in {"collections.defaultdict", "collections.Counter"}:
            return dict if origin.endswith("Counter") else _Defaults
        return type(name.rpartition(".")[2] or "StandIn", (StandIn,), {"origin": origin})


class _Defaults(dict[Any, Any]):
    """A defaultdict without the function that makes its defaults."""

    def __init__(self, *_: object) -> None:
        super().__init__()


class _InertPickle:
    """The attributes that ``torch.load`` uses of a pickle module."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def load_inert(path: Path) -> object:
    """The content of a ``torch.save`` file, containers and tensors on the CPU, every other object a ``StandIn``.

    Texts of Python 2 are read as latin1.

    Raises:
        Exception: of any kind, where the pickle is damaged or does something unusual with tensors.
    """
    payload = torch.load(
        path, map_location="cpu", weights_only=False, pickle_module=_InertPickle, encoding="latin1"
    )
    refuse_inflated(payload, path.stat().st_size)
    return _plain(payload)


def _plain(value: object, depth: int = 0) -> object:
    """Containers as new ones of the builtin kinds: a pickle may have given attributes to those that it made."""
    if depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_plain(item, depth + 1) for item in value) if type(value) in {list, tuple} else None
        )
    return value


_DEEPEST = 8


def stand_ins(payload: object, depth: int = 0) -> Iterator[str]:
    """Origins of the stand-ins in ``payload``, in the order of the file."""
    if isinstance(payload, StandIn):
        yield payload.origin
    elif isinstance(payload, (dict, list, tuple)) and depth < _DEEPEST:
        for item in payload.values() if isinstance(payload, dict) else payload:
            yield from stand_ins(item, depth + 1)

"""Unpickler that builds tensors and plain data, and inert stand-ins for everything else. It never runs code of a file.

``torch.load`` takes this module as its ``pickle_module``. Only the functions in ``_CALLED`` are ever called; every
other global of a pickle becomes a name, calling it gives a ``StandIn``, and setting state on an object does nothing.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import torch

UnpicklingError = pickle.UnpicklingError
_STATE_OF_MODULES = {"_parameters", "_modules"}


class Global:
    """The name of a class or function in a pickle, which is not looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class StandIn(dict[Any, Any]):
    """An object of a class that was not loaded; it keeps the items that the pickle sets on it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.is_module = False
        """Whether its state is that of a torch module: a whole pickled model or a part of one."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def _encode(text: str, encoding: str) -> bytes:
    """Byte strings, as protocol 2 writes them."""
    return text.encode(encoding) if encoding in ("latin1", "utf-8") else b""


def _as_plain_tensor(build: object, kind: object, args: tuple[Any, ...], state: object) -> object:
    """Tensors of a subclass, or with attributes: the tensor alone."""
    return _call(build, args)


def _parameter(data: object, requires_grad: object, hooks: object, state: object = None) -> object:
    return data


_REBUILD = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_meta_tensor_no_storage",
)
_CALLED: dict[str, Callable[..., object]] = {
    **{f"torch._utils.{name}": getattr(torch._utils, name) for name in _REBUILD},
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _as_plain_tensor,
    "torch.serialization._get_layout": torch.serialization._get_layout,
    "torch.Size": torch.Size,
    "collections.OrderedDict": OrderedDict,
    "collections.Counter": Counter,
    "builtins.set": set,
    "builtins.complex": complex,
    "_codecs.encode": _encode,
}
_CALLED_BY_ID = {id(function) for function in _CALLED.values()}


def _call(function: object, args: tuple[Any, ...]) -> object:
    if id(function) in _CALLED_BY_ID:
        return function(*args)  # type: ignore[operator]
    if isinstance(function, Global):
        return StandIn(function.name)
    raise UnpicklingError(f"a {type(function).__name__} is called like a function")


# the implementation in C cannot be told to leave BUILD and REDUCE out
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """See the module."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> object:
        """The function of the allow list, the dtype or enumeration value of torch, or a ``Global``."""
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, (torch.dtype, torch.qscheme)):
            return value
        return _CALLED.get(full) or Global(full)

    def get_extension(self, code: int) -> None:
        """Refuse names by number."""
        raise UnpicklingError(f"extension {code} of copyreg")

    def _instantiate(self, kind: object, args: Any) -> None:
        self.append(_call(kind, tuple(args)))

    def load_reduce(self) -> None:
        """Call a function of the allow list, or stand in."""
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_newobj(self) -> None:
        """Make an object of a class of the allow list, or a stand-in."""
        self.load_reduce()

    def load_newobj_ex(self) -> None:
        """Make a stand-in: nothing of the allow list is written with named arguments."""
        _named, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def load_build(self) -> None:
        """Drop the state of an object; see only whether it is that of a module."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, StandIn) and isinstance(state, dict):
            target.is_module = target.is_module or state.keys() >= _STATE_OF_MODULES

    def load_append(self) -> None:
        """Append to a list; other containers drop the value."""
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        """Extend a list; other containers drop the values."""
        self._extend(self.pop_mark())

    def load_additems(self) -> None:
        """Add to a set; other containers drop the values."""
        values = self.pop_mark()
        if type(self.stack[-1]) is set:
            self.stack[-1].update(values)

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(values)

    def load_setitem(self) -> None:
        """Set one item of a dictionary."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        """Set items of a dictionary."""
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise UnpicklingError(f"items are set on a {type(self.stack[-1]).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][key] = value

    def load_binpersid(self) -> None:
        """Take a storage; source code that old files keep beside modules is dropped."""
        identity = self.stack.pop()
        kind = identity[0] if isinstance(identity, tuple) and identity else None
        self.append(identity[1] if kind == "module" else self.persistent_load(identity))


for _opcode, _method in (
    (pickle.REDUCE, Unpickler.load_reduce),
    (pickle.NEWOBJ, Unpickler.load_newobj),
    (pickle.NEWOBJ_EX, Unpickler.load_newobj_ex),
    (pickle.BUILD, Unpickler.load_build),
    (pickle.APPEND, Unpickler.load_append),
    (pickle.APPENDS, Unpickler.load_appends),
    (pickle.ADDITEMS, Unpickler.load_additems),
    (pickle.SETITEM, Unpickler.load_setitem),
    (pickle.SETITEMS, Unpickler.load_setitems),
    (pickle.BINPERSID, Unpickler.load_binpersid),
):
    Unpickler.dispatch[_opcode[0]] = _method


def load(file: IO[bytes], **options: Any) -> object:
    """The object of one pickle, like ``pickle.load``."""
    result: object = Unpickler(file, **options).load()
    return result

"""The fake of TensorRT offers what the real module has: names, parameters and numbers of enumerations."""

from __future__ import annotations

import enum
import inspect
import re
from typing import Any

import pytest

from tests.backends.tensorrt.fake_trt import API, ENUMS, Builder, OnnxParser, Runtime, Severity

real: Any = pytest.importorskip("tensorrt_rtx", reason="the fake is held against tensorrt-rtx")

CONSTRUCTED = (Builder, OnnxParser, Runtime)
"""Classes that the backend calls; the others it is given."""
PARAMETER = re.compile(r"(\w+): [^,=()]+(= [^,]+)?")


def signatures(function: Any) -> list[list[tuple[str, bool]]]:
    """Every overload in the docstring of a bound function: its parameters, with whether they have a default."""
    name, text = function.__name__, function.__doc__
    heads = re.findall(rf"^(?:\d+\. )?{name}\((self: .*)\) ->", text, flags=re.MULTILINE)
    assert heads, f"{name} has no signature in {text!r}"
    return [[(each[0], bool(each[1])) for each in PARAMETER.findall(head)] for head in heads]


def accepts(names: list[str], overload: list[tuple[str, bool]]) -> bool:
    """Whether a call with these parameters fits: the same names in the same order, and defaults for the rest."""
    found, rest = overload[: len(names)], overload[len(names) :]
    return [name for name, _ in found] == names and all(default for _, default in rest)


def members(api: type) -> dict[str, Any]:
    """Public functions and attributes of a class of the fake."""
    named = {**api.__dict__, **dict.fromkeys(inspect.get_annotations(api))}
    return {name: value for name, value in named.items() if not name.startswith("_")}


FUNCTIONS = [
    (api, name)
    for api in API
    for name, value in {**members(api), **({"__init__": api.__init__} if api in CONSTRUCTED else {})}.items()
    if inspect.isfunction(value)
]


@pytest.mark.parametrize(("api", "name"), FUNCTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_functions_take_the_parameters_of_the_real_ones(api: type, name: str) -> None:
    names = list(inspect.signature(getattr(api, name)).parameters)
    if name == "__init__":
        names.remove("trt")  # bound by the fake module
    overloads = signatures(getattr(getattr(real, api.__name__), name))
    assert any(accepts(names, overload) for overload in overloads), (names, overloads)


@pytest.mark.parametrize("api", API, ids=lambda api: api.__name__)
def test_attributes_are_there_in_the_real_classes(api: type) -> None:
    missing = [name for name in members(api) if not hasattr(getattr(real, api.__name__), name)]
    assert missing == []


@pytest.mark.parametrize("fake", [*ENUMS, Severity], ids=lambda fake: fake.__name__)
def test_enumerations_have_the_real_members_and_numbers(fake: type[enum.IntEnum]) -> None:
    owner = real.ILogger if fake is Severity else real
    found = {name: int(value) for name, value in getattr(owner, fake.__name__).__members__.items()}
    assert {member.name: int(member) for member in fake}.items() <= found.items()


def test_a_wrong_parameter_would_be_seen() -> None:
    (overload,) = signatures(real.IExecutionContext.set_tensor_address)
    assert accepts(["self", "name", "memory"], overload)
    for wrong in (["self", "name"], ["self", "memory", "name"], ["self", "name", "memory", "more"]):
        assert not accepts(wrong, overload)

"""Programs in the language of pickles that would run code in a careless reader: none does here."""

from __future__ import annotations

import builtins
import io
import os
import pickle

import pytest

from rescompile.sources.inert_pickle import Global, StandIn, UnpicklingError, load

RUN = b"cos\nsystem\n"
TOUCH = b"X\x07\x00\x00\x00touch x"


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """Fail where any of the usual doors is opened."""

    def opened(*_args, **_named):
        pytest.fail("code of the file ran")

    for place, name in ((os, "system"), (builtins, "eval"), (builtins, "exec")):
        monkeypatch.setattr(place, name, opened)


class Stateful:
    def __setstate__(self, state):
        pytest.fail("__setstate__ ran")


def program(body: bytes, protocol: int = 2) -> object:
    return load(io.BytesIO(b"\x80" + bytes([protocol]) + body + b"."))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(RUN + b"(" + TOUCH + b"tR", id="REDUCE"),
        pytest.param(b"(" + TOUCH + b"ios\nsystem\n", id="INST"),
        pytest.param(b"(" + RUN + TOUCH + b"o", id="OBJ"),
        pytest.param(RUN + b"(" + TOUCH + b"t\x81", id="NEWOBJ"),
        pytest.param(RUN + b"(" + TOUCH + b"t}\x92", id="NEWOBJ_EX"),
        pytest.param(b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93(" + TOUCH + b"tR", id="STACK_GLOBAL"),
        pytest.param(b"c__builtin__\neval\n(X\x01\x00\x00\x001tR", id="eval of Python 2"),
        pytest.param(b"cbuiltins\ngetattr\n(" + RUN + b"X\x08\x00\x00\x00__call__tR", id="getattr"),
    ],
)
def test_calls_give_inert_stand_ins(body):
    assert isinstance(program(body, protocol=4), StandIn)


def test_a_stand_in_cannot_be_called_again():
    with pytest.raises(UnpicklingError, match="a StandIn is called like a function"):
        program(RUN + b"(tR(" + TOUCH + b"tR")


def test_state_is_set_on_nothing():
    """BUILD on a function of the allow list would change it for the whole process."""
    target = b"ctorch._utils\n_rebuild_tensor_v2\n"
    state = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b"
    from torch._utils import _rebuild_tensor_v2

    before = _rebuild_tensor_v2.__defaults__
    assert program(target + state) is _rebuild_tensor_v2
    assert _rebuild_tensor_v2.__defaults__ is before


def test_setstate_does_not_run():
    stateful = Stateful()
    stateful.x = 1
    found = load(io.BytesIO(pickle.dumps(stateful)))
    assert isinstance(found, StandIn)
    assert not vars(found).keys() - {"name", "is_module"}


def test_extensions_persistent_names_and_buffers_are_refused():
    for body in (b"\x82\x01", b"Psomething\n", b"\x97"):
        with pytest.raises(pickle.UnpicklingError):
            program(body, protocol=5)


def test_names_are_not_looked_up():
    found = program(b"cno.such.module\nThing\n")
    assert isinstance(found, Global)
    assert found.name == "no.such.module.Thing"


def test_containers_that_are_not_loaded_keep_items_and_drop_the_rest():
    found = program(b"ccollections\ndefaultdict\n(tRX\x01\x00\x00\x00aK\x01s")
    assert found["a"] == 1
    assert program(b"ccollections\ndeque\n(tRK\x01a") is not None

"""No pickle runs anything, whatever opcodes it uses and whatever it names."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rescompile.sources.inert_pickle import StandIn, _InertPickle, load_inert, stand_ins

TOUCH = "touch {}"


def archive(folder: Path, content: bytes) -> Path:
    """A file of torch.save whose pickle is ``content``."""
    path = folder / "hostile.pth"
    torch.save({"a": torch.ones(2)}, folder / "plain.pth")
    with zipfile.ZipFile(folder / "plain.pth") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    return path


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def hostile(command: str) -> dict[str, bytes]:
    """Pickles that run ``command`` where they are read carelessly, each by other opcodes."""
    call = b"(" + text(command) + b"t"
    return {
        "reduce": b"\x80\x02cos\nsystem\n" + call + b"R.",
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + call + b"R.",
        "dotted name": b"\x80\x04" + text("torch") + text("os.system") + b"\x93" + call + b"R.",
        "instance": b"\x80\x02(" + text(command) + b"ios\nsystem\n.",
        "object": b"\x80\x02(cos\nsystem\n" + text(command) + b"o.",
        "new object": b"\x80\x02csubprocess\nPopen\n(" + text(command) + b"t\x81.",
        "new object with names": b"\x80\x04" + text("subprocess") + text("Popen") + b"\x93)}" + text("args")
        + text(command) + b"s\x92.",
        "build": b"\x80\x02c__main__\nThing\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb" + text(command)
        + b"b.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR" + call + b"R.",
        "eval": b"\x80\x02cbuiltins\neval\n(" + text(f"__import__('os').system({command!r})") + b"tR.",
        "storage": b"\x80\x02ctorch\nos.systemStorage\n" + call + b"R.",
        "codec": b"\x80\x02c_codecs\nencode\n(" + text(command) + text("os.system") + b"tR.",
        "rebuilt by a stand-in": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n" + text(command)
        + b"))\x89}tR.",
        "ordered dict with methods": b"\x80\x02ccollections\nOrderedDict\n)R}" + text("items")
        + b"cos\nsystem\nsb.",
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile(""))
def test_nothing_runs(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path, hostile(f"touch {tmp_path}/touched")[name])
    try:
        found = load_inert(path)
    except Exception as error:  # any refusal is right
        found = error
    assert not (tmp_path / "touched").exists()
    assert found is not None


def test_a_careless_reader_would_run_them(tmp_path: Path) -> None:
    """The test above could not fail if these pickles did nothing anywhere."""
    ran = []
    for name, content in hostile(f"touch {tmp_path}/touched").items():
        with suppress(Exception):
            pickle.loads(content)
        if (tmp_path / "touched").exists():
            ran.append(name)
            (tmp_path / "touched").unlink()
    assert {"reduce", "stack global", "instance", "object", "getattr", "eval"} <= set(ran)


def test_stand_ins_take_items_elements_and_state(tmp_path: Path) -> None:
    content = (
        b"\x80\x02}(" + text("list") + b"cmine\nList\n)\x81(K\x01K\x02e" + text("dict") + b"cmine\nDict\n)\x81("
        + text("a") + b"K\x01u" + text("state") + b"cmine\nThing\n)\x81}" + text("x") + b"K\x01sbu."
    )  # fmt: skip
    found = load_inert(archive(tmp_path, content))
    assert isinstance(found, dict)
    assert all(isinstance(value, StandIn) for value in found.values())
    assert list(stand_ins(found)) == ["mine.List", "mine.Dict", "mine.Thing"]


def test_containers_are_plain_afterwards(tmp_path: Path) -> None:
    found = load_inert(archive(tmp_path, hostile("true")["ordered dict with methods"]))
    assert type(found) is dict
    assert list(found.items()) == []


def test_no_function_of_torch_is_changed_by_state():
    rebuild = torch._utils._rebuild_tensor_v2
    state = b"N}X\x0c\x00\x00\x00__defaults__(K\x01ts\x86b."
    _InertPickle.load(io.BytesIO(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state))
    assert rebuild.__defaults__ == (None,)

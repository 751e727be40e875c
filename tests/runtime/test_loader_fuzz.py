"""Loading an engine directory with any content succeeds or is an error in one sentence.

A short run is part of every test run. For ten minutes (docs/how-to/embed-python.md):

    RESCOMPILE_FUZZ_SECONDS=600 pytest tests/runtime/test_loader_fuzz.py
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rescompile.errors import RescompileError
from rescompile.manifest import read_manifest
from rescompile.runtime.golden import read_golden
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine
from tests.cpp.hostile import seal

SECONDS = float(os.environ.get("RESCOMPILE_FUZZ_SECONDS", "0"))
EXAMPLES = 40
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    [2**31 - 1, 2**31, 2**63, 2**64, -1, "../x", "model.xml", "a\0b", "openvino", "triton", "tensorrt-rtx", "int8"]
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "engine"
    make_engine(folder, "int8", backend="openvino")
    return folder


def loads_or_says_why(folder: Path) -> None:
    """A hash is worth nothing to an enemy, so the golden answers are read whatever else was wrong."""
    for attempt in (lambda: load(folder).close(), lambda: read_golden(folder, read_manifest(folder))):
        said = "one sentence"
        try:
            attempt()
        except RescompileError as error:  # any other exception is the defect that is looked for
            said = str(error)
        assert said
        assert "\n" not in said


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of a document, as the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


def change_field(folder: Path, data: st.DataObject) -> None:
    """Other values in the manifest, with a right digest."""
    fields = json.loads((folder / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(places(fields)))
        owner = fields
        for key in way:
            owner = owner[key]
        if data.draw(st.booleans()):
            owner[last] = data.draw(VALUES)
        else:
            del owner[last]
    try:
        for entry in (fields.get("files") or {}).values():
            entry["keep"] = True
        seal(folder, fields)
    except (AttributeError, TypeError):  # no list of files any more
        text = json.dumps(fields)
        (folder / "manifest.json").write_text(text)


def change_bytes(folder: Path, data: st.DataObject) -> None:
    """Other bytes in a file; those of the golden answers with a right hash, perhaps."""
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if kind == "set" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[place : place + data.draw(st.integers(0, len(content)))]
        else:
            content[place:place] = data.draw(st.binary(max_size=40))
    (folder / name).write_bytes(content)
    if name == "golden.npz" and data.draw(st.booleans()):
        seal(folder, json.loads((folder / "manifest.json").read_bytes()))


def change_kind(folder: Path, data: st.DataObject) -> None:
    """Something else than a plain file."""
    path = folder / data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    path.unlink()
    kind = data.draw(st.sampled_from(["nothing", "folder", "link", "circle", "pipe"]))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.symlink_to("/dev/zero" if kind == "link" else path)


CHANGES: list[Callable[[Path, st.DataObject], None]] = [change_field, change_bytes, change_kind]


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_no_directory_breaks_the_loader(good: Path) -> None:
    seen = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def breaks_nothing(data: st.DataObject) -> None:
        nonlocal seen
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "engine"
            shutil.copytree(good, folder)
            data.draw(st.sampled_from(CHANGES))(folder, data)
            loads_or_says_why(folder)
        seen += 1

    end = time.monotonic() + SECONDS
    breaks_nothing()
    while time.monotonic() < end:
        breaks_nothing()
    assert seen >= EXAMPLES
    print(f"{seen} directories")

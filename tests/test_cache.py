"""The cache of compiled engines: entries are complete or missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rescompile import cache
from rescompile.cache import CompiledEngines, compiled_engines, key_of


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = CompiledEngines(tmp_path / "new/folder")
    assert store.read("key") is None
    store.write("key", b"engine")
    assert store.read("key") == b"engine"
    assert store.read("other") is None
    store.forget("key")
    store.forget("key")
    assert store.read("key") is None
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:40] + b"x" + b[41:], lambda b: b"", lambda b: b[:31]]
)
def test_a_damaged_file_is_as_good_as_none_and_goes(tmp_path: Path, damage) -> None:
    store = CompiledEngines(tmp_path)
    store.write("key", b"engine" * 10)
    path = tmp_path / "key.blob"
    path.write_bytes(damage(path.read_bytes()))
    assert store.read("key") is None
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CompiledEngines(tmp_path / "file")
    store.write("key", b"engine")
    assert store.read("key") is None
    store.forget("key")


def test_folder_and_files_are_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = CompiledEngines(tmp_path / "engines")
        store.write("key", b"engine")
    finally:
        os.umask(before)
    assert (tmp_path / "engines").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "engines/key.blob").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_could_have_written_is_not_read(tmp_path: Path, what: str) -> None:
    store = CompiledEngines(tmp_path / "engines")
    store.write("key", b"engine")
    path = {"file": store.folder / "key.blob", "folder": store.folder}[what]
    path.chmod(path.stat().st_mode | 0o020)
    assert store.read("key") is None
    store.write("key", b"engine")  # makes both the user's own again
    assert store.read("key") == b"engine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    store = CompiledEngines(tmp_path)
    store.write("key", b"engine")
    os.chown(tmp_path / "key.blob", 12345, -1)
    assert store.read("key") is None


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    store = CompiledEngines(tmp_path / "engines")
    store.write("key", b"engine")
    (store.folder / "link.blob").symlink_to(store.folder / "key.blob")
    os.mkfifo(store.folder / "pipe.blob", 0o600)
    assert store.read("link") is None
    assert store.read("pipe") is None


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CompiledEngines(tmp_path)
    for age, name in enumerate(("c", "b", "a")):
        store.write(name, b"x" * 1000)
        os.utime(tmp_path / f"{name}.blob", (1e9 + age, 1e9 + age))
    assert store.read("c") is not None  # now it was used last
    monkeypatch.setattr(cache, "MOST_BYTES", 3200)
    store.write("d", b"x" * 1000)
    assert [name for name in "abcd" if store.read(name) is not None] == ["a", "c", "d"]


def test_a_key_depends_on_every_part_and_their_order() -> None:
    keys = [key_of(parts) for parts in (["a", "b"], ["b", "a"], ["ab"], ["a"], ["a", "b", ""])]
    assert len(set(keys)) == len(keys)
    assert key_of(["a", "b"]) == keys[0]


def test_the_users_cache_is_taken_unless_it_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path))
    for value in ("off", "OFF", "0"):
        monkeypatch.setenv(cache.SWITCH, value)
        assert compiled_engines() is None
        assert compiled_engines(tmp_path) is None
    monkeypatch.delenv(cache.SWITCH)
    assert compiled_engines() == CompiledEngines(tmp_path / "engines")
    assert compiled_engines(tmp_path / "mine") == CompiledEngines(tmp_path / "mine")

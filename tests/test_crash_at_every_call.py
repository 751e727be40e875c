"""A process that ends, or a disk that fails, at any call: the old result or the new one is there, complete.

RESCOMPILE_SOAK=1 tries every call. Without, those of writing files and directories are all tried, and of a build and an
export a few and the last ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import rescompile
from rescompile.cache import CompiledEngines
from rescompile.config import BuildConfig, ModelConfig
from rescompile.files import atomic_directory, atomic_write
from rescompile.manifest import read_manifest
from rescompile.runtime.integrity import read_engine
from rescompile.serving.export import ExportConfig, export
from tests.crashes import CRASHED, DONE, REFUSED, at_call, count_calls

SOAK = bool(os.environ.get("RESCOMPILE_SOAK"))
EFFECTS = ("crash", "ENOSPC", "EIO")


@pytest.fixture(scope="module")
def engine(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash")
    build(small, folder / "engine")
    return folder / "engine"


def build(small: Path, target: Path, *, force: bool = False) -> None:
    rescompile.build(
        BuildConfig(
            model=ModelConfig(weights=str(small / "net.pth")),
            precision="fp32",
            backend="onnxruntime",
            output=target,
            force=force,
        )
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def again(engine: Path, target: Path) -> None:
    """The next build, which clears up: its files are those of an engine that was built already."""
    with atomic_directory(target, force=True) as staging:
        for path in engine.iterdir():
            shutil.copyfile(path, staging.folder / path.name)


def replace(target: Path) -> None:
    with atomic_directory(target, force=True) as staging:
        (staging.folder / "manifest.json").write_text("new")
        (staging.folder / "model.bin").write_bytes(bytes(1000))


def every_call(
    effect: str,
    below: Path,
    action: Callable[[], object],
    check: Callable[[int, int, str], None],
    fresh: Callable[[], None],
    *,
    few: int | None = None,
) -> None:
    """Try all calls of ``action``, or a ``few`` and the last ones; ``check`` gets call, exit code and output."""
    fresh()
    total = count_calls(effect, below, action)
    assert total > 3
    numbers = list(range(1, total + 1))
    if few is not None and not SOAK:
        numbers = sorted({*numbers[:: total // few], *numbers[-3:]})
    for number in numbers:
        fresh()
        code, said = at_call(number, effect, below, action)
        assert "Traceback" not in said, f"call {number}: {said[-3000:]}"
        assert code in ({CRASHED} if effect == "crash" else {DONE, REFUSED}), (number, code, said)
        check(number, code, said)
    print(f"{effect}: {len(numbers)} of {total} calls")


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("old", [False, True])
def test_replacing_a_directory(engine: Path, tmp_path: Path, effect: str, old: bool) -> None:
    work = tmp_path / "work"
    target = work / "engine"
    write = partial(replace, target)

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if old:
            target.mkdir()
            (target / "manifest.json").write_text("old")

    def check(number: int, code: int, said: str) -> None:
        found = (target / "manifest.json").read_text() if target.exists() else None
        whole = found == "new" and (target / "model.bin").stat().st_size == 1000
        assert whole or found == ("old" if old else None), f"call {number}"
        assert whole or code != DONE
        if code != CRASHED:
            assert names(work) == (["engine"] if found else []), f"call {number}: {said}"
        if code == REFUSED:
            assert said.count("\n") == 1, said
        write()
        assert names(work) == ["engine"], f"call {number}"

    every_call(effect, work, write, check, fresh)


@pytest.mark.parametrize(
    ("effect", "force"), [("crash", False), ("crash", True), ("ENOSPC", True), ("EIO", False)]
)
def test_a_build(engine: Path, small: Path, tmp_path: Path, effect: str, force: bool) -> None:
    work = tmp_path / "work"
    target = work / "engine"
    old = read_manifest(engine).sha256

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if force:
            shutil.copytree(engine, target)

    def check(number: int, code: int, said: str) -> None:
        assert target.exists() or (not force and code != DONE), f"call {number}: {said}"
        if target.exists():
            assert read_engine(target).manifest.checkpoint == read_engine(engine).manifest.checkpoint
        if code != CRASHED:
            assert names(work) == (["engine"] if target.exists() else []), f"call {number}: {said}"
        if code == REFUSED:
            assert said.strip().splitlines()[-1].count(". ") == 0, said
        again(engine, target)
        assert names(work) == ["engine"], f"call {number}"
        assert read_manifest(target).sha256 == old

    every_call(effect, work, partial(build, small, target, force=force), check, fresh, few=1)


@pytest.mark.parametrize("effect", EFFECTS)
def test_an_export_for_a_server(engine: Path, tmp_path: Path, effect: str) -> None:
    work = tmp_path / "work"
    config = ExportConfig(server="triton", output=work / "served", force=True)

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()

    def check(number: int, code: int, said: str) -> None:
        if (work / "served").exists():
            record = json.loads((work / "served/export.json").read_text())
            assert all(
                (work / "served" / name).stat().st_size == each["bytes"]
                for name, each in record["files"].items()
            )
        if code != CRASHED:
            assert names(work) == (["served"] if (work / "served").exists() else []), f"call {number}: {said}"
        export(engine, config)
        assert names(work) == ["served"], f"call {number}"

    every_call(effect, work, partial(export, engine, config), check, fresh, few=8)


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_report(tmp_path: Path, effect: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    path = work / "report.html"

    def check(number: int, code: int, said: str) -> None:
        assert path.read_bytes() == (b"new" * 1000 if code == DONE else path.read_bytes())
        assert path.read_bytes() in {b"old", b"new" * 1000}, f"call {number}"
        if code != CRASHED:
            assert names(work) == ["report.html"], f"call {number}: {said}"
        atomic_write(path, b"old")
        assert names(work) == ["report.html"], f"call {number}"

    def fresh() -> None:
        atomic_write(path, b"old")

    every_call(effect, work, partial(atomic_write, path, b"new" * 1000), check, fresh)


@pytest.mark.parametrize("effect", EFFECTS)
def test_the_cache_of_compiled_engines(tmp_path: Path, effect: str) -> None:
    store = CompiledEngines(tmp_path / "cache")

    def check(number: int, code: int, said: str) -> None:
        assert code != REFUSED, "a cache that cannot be written is not an error"
        assert store.read("key") in {None, b"compiled"}, f"call {number}"
        store.write("key", b"compiled")
        assert store.read("key") == b"compiled"
        assert names(tmp_path / "cache") == ["key.blob"], f"call {number}"

    def fresh() -> None:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    every_call(effect, tmp_path, partial(store.write, "key", b"compiled"), check, fresh)

"""Cached compilations give the same answers, and are never used for another payload or machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino as ov
import pytest

from rescompile import cache
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino import backend, compilation
from rescompile.backends.openvino.cache import compiled_models, processor
from rescompile.engine_files import files_in
from rescompile.errors import EngineError
from rescompile.manifest import read_manifest
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine
from tests.backends.graphs import sample_images

FILES = ("model.xml", "model.bin")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled engines, switched on and empty."""
    monkeypatch.delenv(cache.SWITCH, raising=False)
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/engines"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets one entry whenever OpenVINO compiles."""
    done: list[str] = []
    original = compilation.compile_noting

    def count(*arguments: Any, **rest: Any) -> Any:
        done.append("compiled")
        return original(*arguments, **rest)

    monkeypatch.setattr(compilation, "compile_noting", count)
    return done


def answers(directory: Path, **options: Any) -> Any:
    with load(directory, **options) as engine:
        return engine(sample_images(4))


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_second_load_compiles_nothing_and_answers_the_same(tmp_path, kept, compiled, precision) -> None:
    make_engine(tmp_path / "e", precision)
    compiled.clear()
    first = answers(tmp_path / "e")
    assert len(list(kept.glob("*.blob"))) == len(compiled) == 1
    np.testing.assert_array_equal(answers(tmp_path / "e"), first)
    assert len(compiled) == 1


def test_a_damaged_or_foreign_file_is_compiled_anew(tmp_path: Path, kept: Path, compiled: list[str]) -> None:
    make_engine(tmp_path / "e")
    first = answers(tmp_path / "e")
    (path,) = kept.glob("*.blob")
    store = cache.CompiledEngines(kept)
    path.write_bytes(b"cut")
    np.testing.assert_array_equal(answers(tmp_path / "e"), first)
    store.write(path.stem, b"a whole file, but no engine")
    np.testing.assert_array_equal(answers(tmp_path / "e"), first)
    compiled.clear()
    answers(tmp_path / "e")
    assert compiled == [], "what was compiled anew was kept again"


def test_a_wrong_compilation_is_compiled_anew_within_one_load(
    tmp_path: Path, kept: Path, compiled: list[str]
) -> None:
    make_engine(tmp_path / "e")
    first = answers(tmp_path / "e")
    (path,) = kept.glob("*.blob")
    make_engine(tmp_path / "other", "int8")
    answers(tmp_path / "other")
    (other,) = set(kept.glob("*.blob")) - {path}
    path.write_bytes(other.read_bytes())  # whole, and the compilation of another engine
    compiled.clear()
    np.testing.assert_array_equal(answers(tmp_path / "e"), first)
    assert compiled == ["compiled"]
    compiled.clear()
    np.testing.assert_array_equal(answers(tmp_path / "e"), first)
    assert compiled == [], "the right compilation was kept"


def test_a_wrong_compilation_that_cannot_be_removed_is_said(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may lie on a read-only disk: the load must end, not begin again for ever."""
    make_engine(tmp_path / "e")
    answers(tmp_path / "e")
    (path,) = kept.glob("*.blob")
    make_engine(tmp_path / "other", "int8")
    answers(tmp_path / "other")
    (other,) = set(kept.glob("*.blob")) - {path}
    path.write_bytes(other.read_bytes())

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(EngineError, match="golden answers"):
        load(tmp_path / "e")


def test_an_engine_with_wrong_answers_is_refused_even_without_a_cache(tmp_path: Path, kept: Path) -> None:
    make_engine(tmp_path / "e")
    found = read_manifest(tmp_path / "e")
    answers(tmp_path / "e")
    msgspec.structs.replace(found, golden_relative_rms=0.0).write(tmp_path / "e")
    for _ in range(2):
        with pytest.raises(EngineError, match="golden answers"):
            load(tmp_path / "e")


def test_threads_have_a_compiled_engine_of_their_own(tmp_path: Path, kept: Path) -> None:
    make_engine(tmp_path / "e")
    for _ in range(2):
        answers(tmp_path / "e")
        with load(tmp_path / "e", options=RunOptions(threads=1)) as engine:
            model = engine._runner._first.model  # type: ignore[union-attr]
            assert model.get_property("INFERENCE_NUM_THREADS") == 1
    assert len(list(kept.glob("*.blob"))) == 2


def test_an_engine_that_did_not_prove_itself_is_not_kept(tmp_path: Path, kept: Path) -> None:
    make_engine(tmp_path / "e")
    answers(tmp_path / "e", verify=False)
    assert not kept.exists()
    found = read_manifest(tmp_path / "e")
    golden = tmp_path / "e/golden.npz"
    golden.write_bytes(golden.read_bytes()[:-1] + b"x")
    with pytest.raises(EngineError):
        load(tmp_path / "e")
    assert not kept.exists()
    assert set(FILES) <= set(found.files)


def test_nothing_is_kept_where_it_is_switched_off_or_elsewhere_where_that_is_asked(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(tmp_path / "e")
    answers(tmp_path / "e", options=RunOptions(cache=tmp_path / "mine"))
    assert not kept.exists()
    assert len(list((tmp_path / "mine").glob("*.blob"))) == 1
    monkeypatch.setenv(cache.SWITCH, "off")
    answers(tmp_path / "e")
    assert not kept.exists()


def key(folder: Path, settings: dict[str, Any] | None = None) -> str:
    models = compiled_models(files_in(folder), FILES, RunOptions(), settings or {"A": 1})
    assert models is not None
    return models._key


def test_a_key_names_payload_version_processor_and_settings(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    make_engine(one, "fp32"), make_engine(other, "int8")
    keys = {key(one), key(other), key(one, {"A": 2}), key(one, {"A": 1, "B": 1})}
    monkeypatch.setattr(ov, "get_version", lambda: "another")
    keys.add(key(one))
    monkeypatch.setattr("rescompile.backends.openvino.cache.processor", lambda: ["another"])
    keys.add(key(one))
    assert len(keys) == 6
    assert key(one) == key(one)


def test_a_key_names_the_bytes_that_are_compiled_and_not_what_the_manifest_says(
    tmp_path: Path, kept: Path
) -> None:
    make_engine(tmp_path / "a", "fp32"), make_engine(tmp_path / "b", "int8")
    before = key(tmp_path / "a")
    for name in FILES:
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    assert key(tmp_path / "a") == key(tmp_path / "b") != before


def test_an_openvino_that_cannot_export_keeps_nothing(tmp_path: Path, kept: Path) -> None:
    class Compiled:
        def export_model(self) -> bytes:
            raise RuntimeError("not supported")

    make_engine(tmp_path / "e")
    models = compiled_models(files_in(tmp_path / "e"), FILES, RunOptions(), {})
    assert models is not None
    models.write(Compiled())
    assert not kept.exists()


def test_a_processor_is_told_by_model_and_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor : 0\nmodel name : A\nflags : x y\n\nprocessor : 1\nmodel name : A\nflags : x\n"
    )
    assert processor(cpuinfo)[2:] == ["model name: A", "flags: x y"]
    assert len(processor(tmp_path / "none")) == 3


def test_a_closed_runner_keeps_nothing(tmp_path: Path, kept: Path) -> None:
    found = make_engine(tmp_path / "e")
    runner = backend.OpenVino().load(tmp_path / "e", found)
    runner.close()
    runner.cache_compilation()
    assert not kept.exists()

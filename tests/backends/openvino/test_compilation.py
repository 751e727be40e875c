"""One batch size has a compiled model of its own; all others share one, which is compiled when it is needed."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from rescompile import cache
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino import compilation
from rescompile.backends.openvino.backend import OpenVino
from rescompile.backends.openvino.compilation import fixed_batch
from rescompile.errors import BackendError, EngineError, UsageError
from rescompile.manifest import Batch, SizeRange, TensorSpec
from rescompile.runtime.classify import classify
from rescompile.runtime.loading import load
from rescompile.serving.python_backend import TritonPythonModel
from tests.backends.engines import make_engine, manifest
from tests.backends.graphs import sample_images


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled engines, switched on and empty."""
    monkeypatch.delenv(cache.SWITCH, raising=False)
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/engines"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The batch sizes of the models that OpenVINO compiles, in turn."""
    done: list[str] = []
    original = compilation.compile_noting

    def note(model: Any, *arguments: Any) -> Any:
        done.append(str(model.input(0).get_partial_shape()[0]))
        return original(model, *arguments)

    monkeypatch.setattr(compilation, "compile_noting", note)
    return done


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_another_batch_size_is_compiled_when_it_is_called(tmp_path, kept, compiled, precision) -> None:
    make_engine(tmp_path / "e", precision)
    images = sample_images(8)
    with load(tmp_path / "e") as engine:
        four = engine(images[:4])
        assert compiled == ["4"]
        eight = engine(images)
        assert compiled == ["4", "1..8"]
        np.testing.assert_array_equal(engine(images[:4]), eight[:4])
        np.testing.assert_array_equal(engine(images[:3]), four[:3])
        np.testing.assert_array_equal(np.concatenate([engine(images), engine(images[:4])]), [*eight, *four])
    assert len(list(kept.glob("*.blob"))) == 2
    with load(tmp_path / "e") as engine:
        np.testing.assert_array_equal(engine(images[:5]), eight[:5])
    assert compiled == ["4", "1..8"], "the second load compiles nothing"


@pytest.mark.parametrize("batch", [Batch(1, 8, 8), Batch(1, 3, 8), Batch(2, 6, 8)])
def test_the_golden_images_fill_the_batch_that_is_compiled(tmp_path, compiled, batch: Batch) -> None:
    make_engine(tmp_path / "e", batch=batch)
    with load(tmp_path / "e") as engine:
        assert compiled == [str(batch.opt)]
        engine(sample_images(batch.opt))
    assert compiled == [str(batch.opt)]


def test_a_user_names_the_batch_size_of_most_calls(tmp_path: Path, compiled: list[str]) -> None:
    make_engine(tmp_path / "e")
    with load(tmp_path / "e", options=RunOptions(batch=2)) as engine:
        engine(sample_images(2))
    assert compiled == ["2"]
    with pytest.raises(UsageError, match=r"said to have 9 images, .* takes 1 to 8; pass another RunOptions"):
        load(tmp_path / "e", options=RunOptions(batch=9))
    with pytest.raises(UsageError, match="a batch of 0 images"):
        RunOptions(batch=0)


def test_engines_of_one_batch_size_of_several_image_sizes_or_of_large_batches_have_one_model() -> None:
    def fixed(**changes: Any) -> int | None:
        found = msgspec.structs.replace(manifest("fp32", "openvino"), **changes)
        return fixed_batch(found, RunOptions())

    assert fixed() == 4
    assert fixed(batch=Batch(1, 64, 80)) == 64
    assert fixed(batch=Batch(1, 65, 80)) is None
    assert fixed(batch=Batch(4, 4, 4)) is None
    assert fixed(inputs=(TensorSpec("images", (-1, 3, 1024, 2048), "float32", "NCHW"),)) == 4
    assert fixed(inputs=(TensorSpec("images", (-1, 3, 2048, 2048), "float32", "NCHW"),)) is None
    assert fixed(sizes=SizeRange((16, 16), (32, 32))) is None


def test_an_engine_that_is_removed_while_it_runs_is_compiled_from_what_was_checked(
    tmp_path, compiled
) -> None:
    make_engine(tmp_path / "e")
    with load(tmp_path / "e") as engine:
        expected = engine(sample_images(4))
        shutil.rmtree(tmp_path / "e")
        np.testing.assert_array_equal(engine(sample_images(4)[:3]), expected[:3])
    assert compiled == ["4", "1..8"]


@pytest.mark.parametrize("name", ["model.bin", "golden.npz"])
@pytest.mark.parametrize("cut", [False, True])
def test_an_engine_that_is_changed_in_its_place_while_it_runs_is_not_compiled(tmp_path, name, cut) -> None:
    make_engine(tmp_path / "e")
    with load(tmp_path / "e") as engine:
        expected = engine(sample_images(4))
        path = tmp_path / "e" / name
        with path.open("r+b") as stream:
            if cut:
                stream.truncate(path.stat().st_size - 1)
            else:
                stream.write(b"\xff" * 64)
        for _ in range(2):
            with pytest.raises(
                EngineError, match=rf"{name} was changed while the engine ran; load the engine again"
            ):
                engine(sample_images(3))
        np.testing.assert_array_equal(engine(sample_images(4)), expected)


def test_a_wrong_compilation_of_all_sizes_in_the_cache_is_compiled_anew(tmp_path, kept, compiled) -> None:
    for name in ("e", "other"):
        make_engine(tmp_path / name, "int8" if name == "other" else "fp32")
    blobs: dict[str, Path] = {}
    for name in ("e", "other"):
        with load(tmp_path / name) as engine:
            before = set(kept.glob("*.blob"))
            expected = engine(sample_images(3))
            (blobs[name],) = set(kept.glob("*.blob")) - before
    blobs["e"].write_bytes(blobs["other"].read_bytes())  # whole, and the compilation of another engine
    compiled.clear()
    with load(tmp_path / "e") as engine:
        found = engine(sample_images(3))
    assert compiled == ["1..8"]
    assert not np.array_equal(found, expected)
    with load(tmp_path / "e") as engine:
        np.testing.assert_array_equal(engine(sample_images(3)), found)
    assert compiled == ["1..8"], "the right compilation was kept"


def test_wrong_answers_of_what_is_compiled_later_are_not_given(tmp_path, kept, monkeypatch) -> None:
    make_engine(tmp_path / "e", "int8"), make_engine(tmp_path / "other")
    with load(tmp_path / "e") as engine:
        expected = engine(sample_images(4))
        monkeypatch.setattr(
            compilation, "executable", lambda files, form, warn: compilation_of(tmp_path / "other")
        )
        for _ in range(2):
            with pytest.raises(EngineError, match="does not reproduce its golden answers"):
                engine(sample_images(3))
        np.testing.assert_array_equal(engine(sample_images(4)), expected)
    assert len(list(kept.glob("*.blob"))) == 1


def compilation_of(directory: Path) -> Any:
    from rescompile.backends.openvino.executable import executable

    return executable(directory, None)


def test_without_verification_nothing_that_is_compiled_later_is_kept(tmp_path, kept, compiled) -> None:
    make_engine(tmp_path / "e")
    with load(tmp_path / "e", verify=False) as engine:
        assert engine(sample_images(3)).shape == (3, 10)
    assert compiled == ["4", "1..8"]
    assert not kept.exists()


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_threads_that_call_other_sizes_first_compile_once(tmp_path, compiled, hint) -> None:
    make_engine(tmp_path / "e", "int8")
    images = sample_images(8)
    with load(tmp_path / "e", hint=hint) as engine:
        expected = np.concatenate([engine(images[:4]), engine(images[4:])])
        start = threading.Barrier(8)

        def call(size: int) -> Any:
            start.wait(60)
            return [engine(images[:size]) for _ in range(3)]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(call, range(1, 9)))
        submitted = [engine.submit(images[:size]) for size in range(1, 9)]
        for size, answers in enumerate(found, 1):
            for answer in (*answers, submitted[size - 1].result()):
                np.testing.assert_array_equal(answer, expected[:size])
    assert compiled == ["4", "1..8"]


def test_a_runner_that_is_closed_compiles_no_more(tmp_path: Path, compiled: list[str]) -> None:
    found = make_engine(tmp_path / "e")
    runner = OpenVino().load(tmp_path / "e", found)
    runner.close()
    for size in (3, 4):
        with pytest.raises(BackendError, match="closed; load it again"):
            runner(sample_images(size))
    assert compiled == ["4"]


def test_a_range_that_the_payload_does_not_have_is_found_although_the_cache_has_its_size(
    tmp_path, kept
) -> None:
    found = make_engine(tmp_path / "e")
    load(tmp_path / "e").close()
    msgspec.structs.replace(found, batch=Batch(1, 4, 16)).write(tmp_path / "e")
    with pytest.raises(EngineError, match="does not fit the manifest"):
        load(tmp_path / "e")


def test_a_folder_of_photographs_needs_one_model(tmp_path, compiled, monkeypatch) -> None:
    make_engine(tmp_path / "e")
    photos = [tmp_path / f"{index}.png" for index in range(5)]
    for index, path in enumerate(photos):
        Image.new("RGB", (20, 16), (50 * index, 90, 200 - 40 * index)).save(path)
    monkeypatch.setattr("rescompile.runtime.classify.available_cores", lambda: 2)
    found = classify(tmp_path / "e", photos, top=3)
    assert compiled == ["2"]
    with load(tmp_path / "e") as engine:
        for photo, answer in zip(photos, found, strict=True):
            expected = dict(engine.classify(photo, 3))
            assert {each.name: each.probability for each in answer.predictions} == pytest.approx(expected)


def test_a_server_compiles_everything_before_its_first_request(tmp_path, compiled) -> None:
    make_engine(tmp_path / "1/engine")
    model = TritonPythonModel()
    model.initialize({"model_instance_kind": "CPU", "model_repository": str(tmp_path), "model_version": "1"})
    assert compiled == ["4", "1..8"]
    model.finalize()

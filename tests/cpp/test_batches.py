"""C++ as in Python: one batch size has a compiled model of its own, all others share one that is compiled later."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rescompile.manifest import Batch
from tests.backends.engines import make_engine
from tests.backends.graphs import sample_images
from tests.cpp.native import Library, NativeError

pytestmark = pytest.mark.slow


def blobs(folder: Path) -> set[Path]:
    return set(folder.glob("*.blob"))


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"cache": str(folder).encode(), **more}


def test_another_batch_size_is_compiled_when_it_is_called(library: Library, tmp_path: Path) -> None:
    make_engine(tmp_path / "e", "int8")
    images, cache = sample_images(8), tmp_path / "cache"
    engine = library.load(tmp_path / "e", **options(cache))
    four = engine(images[:4])
    assert len(blobs(cache)) == 1
    eight = engine(images)
    assert len(blobs(cache)) == 2
    np.testing.assert_array_equal(eight[:4], four)
    stored = {path: path.stat().st_mtime_ns for path in blobs(cache)}
    again = library.load(tmp_path / "e", **options(cache))
    np.testing.assert_array_equal(again(images[:3]), four[:3])
    np.testing.assert_array_equal(again(np.concatenate([images, images[:4]])), [*eight, *four])
    assert blobs(cache) == set(stored)


@pytest.mark.parametrize("batch", [Batch(1, 8, 8), Batch(1, 3, 8), Batch(2, 6, 8)])
def test_the_golden_images_fill_the_batch_that_is_compiled(library, tmp_path: Path, batch: Batch) -> None:
    make_engine(tmp_path / "e", batch=batch)
    engine = library.load(tmp_path / "e", **options(tmp_path / "cache"))
    engine(sample_images(batch.opt))
    assert len(blobs(tmp_path / "cache")) == 1
    engine(sample_images(batch.max + 1))  # the last image alone is filled up to the smallest batch
    assert len(blobs(tmp_path / "cache")) == 2


def test_a_user_names_the_batch_size_of_most_calls(library: Library, tmp_path: Path) -> None:
    make_engine(tmp_path / "e")
    engine = library.load(tmp_path / "e", **options(tmp_path / "cache", batch=2))
    engine(sample_images(2))
    assert len(blobs(tmp_path / "cache")) == 1
    for batch in (9, -1):
        with pytest.raises(
            NativeError, match=f"said to have {batch} images, .* takes 1 to 8: pass another batch"
        ):
            library.load(tmp_path / "e", batch=batch)


def test_an_engine_that_is_removed_while_it_runs_is_compiled_from_what_was_checked(library, tmp_path) -> None:
    make_engine(tmp_path / "e")
    engine = library.load(tmp_path / "e")
    expected = engine(sample_images(4))
    shutil.rmtree(tmp_path / "e")
    np.testing.assert_array_equal(engine(sample_images(3)), expected[:3])


@pytest.mark.parametrize("name", ["model.bin", "golden.npz"])
@pytest.mark.parametrize("cut", [False, True])
def test_an_engine_that_is_changed_in_its_place_is_not_compiled(library, tmp_path, name, cut) -> None:
    make_engine(tmp_path / "e")
    engine = library.load(tmp_path / "e")
    expected, path = engine(sample_images(4)), tmp_path / "e" / name
    with path.open("r+b") as stream:
        if cut:
            stream.truncate(path.stat().st_size - 1)
        else:
            stream.write(b"\xff" * 64)
    for _ in range(2):
        with pytest.raises(
            NativeError, match=rf"{name} was changed while the engine ran; load the engine again"
        ):
            engine(sample_images(3))
    np.testing.assert_array_equal(engine(sample_images(4)), expected)


def test_a_wrong_compilation_of_all_sizes_in_the_cache_is_compiled_anew(library, tmp_path: Path) -> None:
    cache, later = tmp_path / "cache", {}
    for name, precision in (("e", "fp32"), ("other", "int8")):
        make_engine(tmp_path / name, precision)
        engine = library.load(tmp_path / name, **options(cache))
        before = blobs(cache)
        expected = engine(sample_images(3))
        (later[name],) = blobs(cache) - before
        if name == "e":
            right = expected
    later["e"].write_bytes(later["other"].read_bytes())  # whole, and the compilation of another engine
    engine = library.load(tmp_path / "e", **options(cache))
    np.testing.assert_array_equal(engine(sample_images(3)), right)
    assert later["e"].read_bytes() != later["other"].read_bytes(), "the right compilation was kept"


def test_without_verification_nothing_that_is_compiled_later_is_kept(library, tmp_path: Path) -> None:
    make_engine(tmp_path / "e")
    engine = library.load(tmp_path / "e", **options(tmp_path / "cache", skip_verification=1))
    assert engine(sample_images(3)).shape == (3, 10)
    assert not blobs(tmp_path / "cache")


@pytest.mark.parametrize("hint", [0, 1])
def test_threads_that_call_other_sizes_first_get_right_answers(library, tmp_path: Path, hint: int) -> None:
    make_engine(tmp_path / "e", "int8")
    images = sample_images(8)
    engine = library.load(tmp_path / "e", hint=hint)
    expected = np.concatenate([engine(images[:4]), engine(images[4:])])
    sizes = list(range(1, 9)) * 3
    with ThreadPoolExecutor(8) as pool:
        for size, found in zip(sizes, pool.map(lambda size: engine(images[:size]), sizes), strict=True):
            np.testing.assert_array_equal(found, expected[:size])


def test_a_range_that_the_payload_does_not_have_is_found_although_the_cache_has_its_size(
    library, tmp_path
) -> None:
    found = make_engine(tmp_path / "e")
    library.load(tmp_path / "e", **options(tmp_path / "cache"))
    msgspec.structs.replace(found, batch=Batch(1, 4, 16)).write(tmp_path / "e")
    with pytest.raises(NativeError, match="does not fit the manifest"):
        library.load(tmp_path / "e", **options(tmp_path / "cache"))

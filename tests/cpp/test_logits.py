"""C++ and Python give the same logits, to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import rescompile
from rescompile.backends.base import RunOptions
from rescompile.manifest import Manifest, read_manifest
from tests.cpp.native import Library, NativeError

pytestmark = pytest.mark.slow

Engines = dict[str, Path]


def images(manifest: Manifest, count: int, seed: int = 0) -> NDArray[Any]:
    spec, random = manifest.inputs[0], np.random.default_rng(seed)
    shape = (count, *spec.shape[1:])
    if spec.dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "threads"),
    [("int8", 1), ("int8", 2), ("int8", None), ("pixels", 1), ("fp32", 1), ("fp16", 2), ("fixed", None)],
)
def test_logits_are_pythons_to_the_bit(
    library: Library, engines: Engines, name: str, threads: int | None
) -> None:
    native = library.load(engines[name], threads=threads or 0)
    with rescompile.load(engines[name], options=RunOptions(threads=threads)) as engine:
        for count in (1, 4, 8, 9, 17):
            given = images(engine.manifest, count)
            expected = engine(given)
            assert np.isfinite(expected).all()
            np.testing.assert_array_equal(native(given).view(np.uint32), expected.view(np.uint32))


def test_throughput_and_a_cache_change_no_bit(library: Library, engines: Engines, tmp_path: Path) -> None:
    plain = library.load(engines["int8"])
    given = images(read_manifest(engines["int8"]), 5)
    for _ in range(2):  # the second time from the cache
        other = library.load(engines["int8"], hint=1, cache=str(tmp_path).encode())
        np.testing.assert_array_equal(other(given), plain(given))
    assert list(tmp_path.iterdir())


def test_threads_share_an_engine(library: Library, engines: Engines) -> None:
    native = library.load(engines["int8"], hint=1)
    manifest = read_manifest(engines["int8"])
    batches = [images(manifest, 1 + seed % 9, seed) for seed in range(12)]
    expected = [native(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(native, batches * 5), expected * 5, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_facts_are_the_manifests(library: Library, engines: Engines) -> None:
    for name in ("int8", "pixels", "fixed"):
        native, manifest = library.load(engines[name]), read_manifest(engines[name])
        facts, spec, batch = native.facts, manifest.inputs[0], manifest.batch
        assert tuple(facts.shape) == spec.shape[1:]
        assert (facts.batch_min, facts.batch_opt, facts.batch_max) == (batch.min, batch.opt, batch.max)
        assert (facts.dtype, facts.layout) == ((1, 1) if spec.layout == "NHWC" else (0, 0))
        assert tuple(native.class_name(index) for index in range(facts.classes)) == manifest.classes
        assert native.class_name(facts.classes) is None


def test_the_best_classes_are_pythons(library: Library, engines: Engines) -> None:
    native = library.load(engines["int8"])
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    with rescompile.load(engines["int8"]) as engine:
        expected = engine.classify(pixels, 20)
    found = library.top_k(native(native.preprocess(pixels))[0], 20)
    assert [native.class_name(index) for index, _ in found] == [name for name, _ in expected]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected], rel=1e-14)


def test_wrong_input_is_refused_in_words(library: Library, engines: Engines) -> None:
    native, pixels = library.load(engines["int8"]), library.load(engines["pixels"])
    good = images(read_manifest(engines["int8"]), 2)
    for call, words in (
        (lambda: native(good, 3), "6144 values, but 3 images of this engine are 3 times 3072"),
        (lambda: native(good, 0), "there are no images"),
        (lambda: pixels(good), "are float32, but this engine takes uint8"),
    ):
        with pytest.raises(NativeError, match=words) as refused:
            call()
        assert refused.value.code == 1
    with pytest.raises(NativeError, match="-1 threads were asked for"):
        library.load(engines["int8"], threads=-1)


def test_a_directory_may_be_loaded_without_proof(library: Library, engines: Engines) -> None:
    given = images(read_manifest(engines["int8"]), 2)
    proved, trusted = library.load(engines["int8"]), library.load(engines["int8"], skip_verification=1)
    np.testing.assert_array_equal(trusted(given), proved(given))

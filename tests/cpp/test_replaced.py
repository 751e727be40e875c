"""Directories that are replaced all the time while they are loaded, in C++ and in Python: no load is a mixture."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.files import renaming
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine
from tests.backends.graphs import sample_images
from tests.cpp.native import Library

LOADS = 200 if os.environ.get("RESCOMPILE_SOAK") else 30

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("language", ["C++", "Python"])
def test_loads_while_directories_change_places(library: Library, tmp_path: Path, language: str) -> None:
    images, expected = sample_images(3), {}
    for name, precision in (("a", "fp32"), ("b", "int8")):
        found = make_engine(tmp_path / name, precision)
        labels = tuple(f"{name} {index}" for index in range(10))
        outputs = (msgspec.structs.replace(found.outputs[0], labels=labels),)
        write_hashed_manifest(tmp_path / name, msgspec.structs.replace(found, outputs=outputs))
        expected[f"{name} 0"] = library.load(tmp_path / name, threads=1)(images)
    assert not np.array_equal(expected["a 0"], expected["b 0"])
    stop, swaps = threading.Event(), 0

    def swap() -> None:
        nonlocal swaps
        while not stop.wait(0.0005):
            assert renaming.exchange(tmp_path / "a", tmp_path / "b")
            swaps += 1

    def loaded() -> tuple[str | None, Any]:
        if language == "C++":
            engine = library.load(tmp_path / "a", threads=1)
            return engine.class_name(0), engine(images)
        with load(tmp_path / "a") as opened:
            return opened.manifest.classes[0], opened(images)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen, loads, end = set(), 0, time.monotonic() + 120
    try:
        # a busy machine may run the other thread late
        while loads < LOADS or (len(seen) < 2 and time.monotonic() < end):
            loads += 1
            name, answers = loaded()
            assert name is not None
            np.testing.assert_allclose(answers, expected[name], rtol=1e-5, atol=1e-5)
            seen.add(name)
    finally:
        stop.set()
        swapper.join()
    assert seen == {"a 0", "b 0"}
    print(f"{language}: {loads} loads, {swaps} exchanges, 0 mixed, 0 failed")

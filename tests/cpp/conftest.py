"""One compilation and one set of engines for all tests of the C++ library.

RESCOMPILE_CPP_BUILD names a folder in which what was compiled is kept for the next run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import rescompile
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.manifest import Batch
from tests.backends.engines import make_engine
from tests.cpp.building import Native, build_native, compiled, what_is_missing
from tests.cpp.native import Library

Folders = Callable[[str], Path]


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders to compile in; skips where nothing can be compiled."""
    if missing := what_is_missing():
        pytest.skip(f"no C++ tests: {missing}")
    kept = os.environ.get("RESCOMPILE_CPP_BUILD")
    return (lambda name: Path(kept) / name) if kept else tmp_path_factory.mktemp


@pytest.fixture(scope="session")
def native(build_folder: Folders) -> Native:
    return build_native(build_folder("native"))


@pytest.fixture(scope="session")
def library(native: Native) -> Library:
    return Library(native.library)


@pytest.fixture(scope="session")
def sanitized(build_folder: Folders) -> Path:
    """The folder of a build that address and undefined-behaviour sanitizers watch."""
    folder = build_folder("sanitized")
    options = ("-DRESCOMPILE_SANITIZE=address,undefined", "-DRESCOMPILE_TESTS=ON", "-DRESCOMPILE_FUZZ=ON")
    targets = ("unit_tests", "gpu_tests", "rescompile-check", "c_api_test", "fuzz_readers", "fuzz_images")
    compiled(folder, *options, targets=targets)
    return folder


@pytest.fixture(scope="session")
def engines(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines by name: a real INT8 ResNet-20 for numbers and one for pixels, and small ones of other kinds."""
    folder = tmp_path_factory.mktemp("engines")
    config = BuildConfig(
        model=ModelConfig(weights=str(small / "net.pth")),
        calibration=CalibrationConfig(images=small / "images.npz"),
        backend="openvino",
        batch=Batch(1, 4, 8),
        output=folder / "int8",
    )
    rescompile.build(config)
    rescompile.build(replace(config, input_format="uint8-nhwc", output=folder / "pixels"))
    make_engine(folder / "fp32", "fp32")
    make_engine(folder / "fp16", "fp16")
    make_engine(folder / "fixed", "int8", batch=Batch(4, 4, 4))
    return {path.name: path for path in sorted(folder.iterdir())}

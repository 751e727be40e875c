"""The programs beside the library, and the library under sanitizers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from rescompile.version import VERSION
from tests.cpp.building import SOURCE, Native, compiled, run
from tests.cpp.conftest import Folders
from tests.cpp.native import Library

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cpp")]

# oneTBB opens a library in a way that the sanitizers forbid, unless it is told
QUIET_TBB = {"TBB_ENABLE_SANITIZERS": "1"}


def test_the_library_has_the_version_of_the_package(library: Library) -> None:
    assert library.c.rescompile_version().decode() == VERSION


def test_only_the_api_is_visible(native: Native) -> None:
    names = re.findall(r" T (.+)", run("nm", "-D", "--defined-only", "-C", native.library))
    assert {"rescompile_load", "rescompile::version()"} <= set(names)
    assert all(re.match(r"rescompile(::|_)", name) and "internal" not in name for name in names), names


def test_an_engine_is_soaked(native: Native, engines: dict[str, Path]) -> None:
    for name in ("int8", "pixels"):
        found = json.loads(run(native.soak, engines[name], 4, 2000))
        assert (found["threads"], found["inferences"], found["wrong"], found["failed"]) == (4, 2000, 0, 0)
        assert found["growth_mib"] <= 4


def test_units_under_address_and_undefined_sanitizers(sanitized: Path) -> None:
    shown = run(sanitized / "tests/unit_tests")
    assert "FAIL" not in shown
    assert shown.count("ok  ") >= 12


def test_a_c_program_under_address_and_undefined_sanitizers(
    sanitized: Path, engines: dict[str, Path]
) -> None:
    assert VERSION in run(sanitized / "tests/c_api_test", engines["int8"], **QUIET_TBB)


def test_units_under_the_thread_sanitizer_and_without_backends(build_folder: Folders) -> None:
    folder = build_folder("threads")
    options = ("-DRESCOMPILE_SANITIZE=thread", "-DRESCOMPILE_TESTS=ON", "-DRESCOMPILE_OPENVINO=OFF")
    compiled(SOURCE, folder, *options, targets=("unit_tests",))
    assert "ok   many_threads_share_one_engine" in run(folder / "tests/unit_tests")


@pytest.mark.skipif(
    not (shutil.which("clang++") or shutil.which("clang++-14")),
    reason="libFuzzer comes with clang, which is not here",
)
def test_the_loader_survives_a_short_fuzzing(build_folder: Folders, tmp_path: Path) -> None:
    folder = build_folder("fuzz")
    clang = "clang" if shutil.which("clang++") else "clang-14"
    compiler_options = (
        f"-DCMAKE_C_COMPILER={clang}",
        f"-DCMAKE_CXX_COMPILER={clang.replace('clang', 'clang++')}",
    )
    options = ("-DRESCOMPILE_FUZZ=ON", "-DRESCOMPILE_SANITIZE=address,undefined", "-DRESCOMPILE_OPENVINO=OFF")
    compiled(SOURCE, folder, *compiler_options, *options, targets=("fuzz_load", "fuzz_seeds"))
    run(folder / "fuzz/fuzz_seeds", tmp_path / "corpus")
    shown = run(folder / "fuzz/fuzz_load", "-runs=20000", "-seed=1", "-max_len=8192", tmp_path / "corpus")
    assert "Done 20000 runs" in shown

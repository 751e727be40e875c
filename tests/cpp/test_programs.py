"""The programs beside the library, and the library under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import CpuForm, read_manifest
from rescompile.version import VERSION
from tests.cpp.building import SOURCE, Native, compiled, run
from tests.cpp.conftest import Folders
from tests.cpp.native import Library

pytestmark = pytest.mark.slow

# oneTBB opens a library in a way that the sanitizers forbid, unless it is told
QUIET_TBB = {"TBB_ENABLE_SANITIZERS": "1"}


def test_the_library_has_the_version_of_the_package(library: Library) -> None:
    assert library.c.rescompile_version().decode() == VERSION


def test_only_the_api_is_visible(native: Native) -> None:
    names = re.findall(r" T (.+)", run("nm", "-D", "--defined-only", "-C", native.library))
    assert {"rescompile_load", "rescompile::version()"} <= set(names)
    assert all(re.match(r"rescompile(::|_)", name) and "internal" not in name for name in names), names


def test_units_under_address_and_undefined_sanitizers(sanitized: Path) -> None:
    shown = run(sanitized / "tests/unit_tests")
    assert "FAIL" not in shown
    assert shown.count("ok  ") >= 12


@pytest.mark.parametrize("target", ["readers", "images"])
def test_what_fuzzing_found_under_address_and_undefined_sanitizers(sanitized: Path, target: str) -> None:
    corpus = SOURCE / "fuzz/corpus" / target
    said = run(sanitized / f"fuzz/fuzz_{target}", corpus)
    assert said == f"Done {len(list(corpus.iterdir()))} runs\n"


def test_a_c_program_under_address_and_undefined_sanitizers(
    sanitized: Path, engines: dict[str, Path]
) -> None:
    assert VERSION in run(sanitized / "tests/c_api_test", engines["int8"], **QUIET_TBB)


def test_units_under_the_thread_sanitizer_and_without_backends(build_folder: Folders) -> None:
    folder = build_folder("threads")
    options = ("-DRESCOMPILE_SANITIZE=thread", "-DRESCOMPILE_TESTS=ON", "-DRESCOMPILE_OPENVINO=OFF")
    compiled(folder, *options, targets=("unit_tests",))
    assert run(folder / "tests/unit_tests", "threads") == "ok   many_threads_share_one_engine\n"


@pytest.mark.parametrize("form", ["vnni", "amx"])
def test_an_engine_that_this_cpu_may_not_compute_exactly_is_refused(
    sanitized: Path, engines: dict[str, Path], tmp_path: Path, form: CpuForm
) -> None:
    folder = tmp_path / "engine"
    shutil.copytree(engines["int8"], folder)
    write_hashed_manifest(folder, msgspec.structs.replace(read_manifest(folder), cpu_form=form))
    done = subprocess.run(
        [sanitized / "tools/rescompile-check", folder], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **QUIET_TBB, "ASAN_OPTIONS": "detect_leaks=0", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"has the form {form}, which this CPU does not compute exactly" in done.stdout
    assert "`rescompile build --cpu-form avx2`" in done.stdout

"""The C++ library answers a hostile directory with one sentence; ``tests/runtime/test_hostile.py`` asks Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import read_manifest
from tests.cpp.hostile import CASES

pytestmark = pytest.mark.slow

# oneTBB opens a library in a way that sanitizers forbid, unless it is told; what a front end of OpenVINO leaks when it
# is shown garbage is not ours
QUIET = {"TBB_ENABLE_SANITIZERS": "1", "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.fixture(scope="module")
def good(engines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the files that a library needs."""
    folder = tmp_path_factory.mktemp("good") / "engine"
    folder.mkdir()
    for name in ("manifest.json", "model.xml", "model.bin", "golden.npz"):
        shutil.copy(engines["int8"] / name, folder)
    write_hashed_manifest(folder, read_manifest(folder))
    return folder


@pytest.fixture(scope="module")
def spoilt(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for each case."""
    root = tmp_path_factory.mktemp("hostile")
    folders = {}
    for name, case in CASES.items():
        folders[name] = root / name.replace(" ", "-")
        shutil.copytree(good, folders[name])
        case.spoil(folders[name])
    return folders


@pytest.fixture(scope="module")
def said(sanitized: Path, good: Path, spoilt: dict[str, Path]) -> dict[str, str]:
    """The answers of the sanitized library to all of them and to the good one, from one process."""
    done = subprocess.run(
        [sanitized / "tools/rescompile-check", good, *spoilt.values(), "nowhere"],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **QUIET},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Sanitizer" not in done.stderr
    return dict(zip(("good", *spoilt, "nowhere"), done.stdout.splitlines(), strict=True))


def test_the_good_one_is_good(said: dict[str, str]) -> None:
    assert said["good"] == "good resnet20-cifar int8 openvino"
    assert said["nowhere"].startswith("bad 2 nowhere is not an engine directory: it does not exist")


@pytest.mark.parametrize("name", CASES)
def test_cpp_refuses_in_one_sentence(said: dict[str, str], name: str) -> None:
    assert said[name].startswith(f"bad {CASES[name].code} ")
    assert CASES[name].words in said[name]


def test_without_verification_sizes_and_digest_are_checked_still(
    sanitized: Path, spoilt: dict[str, Path]
) -> None:
    names = ("truncated payload", "changed manifest", "linked payload", "cut weights")
    done = subprocess.run(
        [sanitized / "tools/rescompile-check", "--no-verify", *(spoilt[name] for name in names)],
        capture_output=True, text=True, check=False, env={**os.environ, **QUIET},
    )  # fmt: skip
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["bad"] * len(names), (
        done.stdout + done.stderr
    )

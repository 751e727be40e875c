"""Every command and program of the how-to works; the `native` fixture runs the commands that compile."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import rescompile
from tests.cpp.building import ROOT, Native, blocks, commands, obey, quickly, run
from tests.cpp.conftest import Folders

pytestmark = pytest.mark.slow

CLANG = next((path for name in ("clang", "clang-14") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def root(native: Native, engines: dict[str, Path]) -> Path:
    """The folder of the how-to, with a smaller engine in place of its own."""
    engine = native.root / "resnet50-int8"
    engine.unlink(missing_ok=True)
    engine.symlink_to(engines["int8"])
    return native.root


def test_every_command_is_run_by_a_test() -> None:
    build, *others = commands()
    # as tests/sources/test_published_weights.py builds one, from weights that it does not have to download
    assert build.startswith("rescompile build --depth 50 --precision int8 --backend openvino")
    kinds = [words.split()[0] for words in others if "fuzz" not in words]
    assert kinds == [
        "cmake", "build/classify/classify", "rescompile", "build/classify/classify-folder", "cmake", "cmake",
        "build/librescompile/tools/rescompile-check", "build/librescompile/tools/rescompile-soak",
    ]  # fmt: skip
    assert len([words for words in others if "fuzz" in words]) == 3


def test_the_example_says_what_python_says(root: Path) -> None:
    example, python = (words for words in commands() if "chelsea.jpg" in words)
    expected = obey(python, root).splitlines()[1:]
    assert [line.split() for line in obey(example, root).splitlines()] == [line.split() for line in expected]


def test_a_folder_is_classified_as_in_python(root: Path, engines: dict[str, Path]) -> None:
    (example,) = (words for words in commands() if "classify-folder" in words)
    *lines, speed = obey(example, root).splitlines()
    photographs = sorted((ROOT / "calibration/photographs").glob("*.jpg"))
    with rescompile.load(engines["int8"]) as engine:
        best = [(path, *engine.classify(path, 1)[0]) for path in photographs]
    expected = [f"{100 * p:6.2f} %  {name}  calibration/photographs/{path.name}" for path, name, p in best]
    assert lines == expected
    assert re.fullmatch(r"6 photographs in \S+ s: \S+ images/s \(\d+ threads, \d+ in a request\)", speed)


def test_an_engine_is_checked_and_soaked(root: Path, native: Native, engines: dict[str, Path]) -> None:
    check, soak = (words for words in commands() if "/tools/" in words)
    assert obey(check, root) == "good resnet20-cifar int8 openvino\n"
    assert soak == "build/librescompile/tools/rescompile-soak resnet50-int8 4 100000"
    for name in ("int8", "pixels"):
        found = json.loads(run(native.soak, engines[name], 4, 2000))
        assert (found["threads"], found["inferences"], found["wrong"], found["failed"]) == (4, 2000, 0, 0)
        assert found["growth_mib"] <= 4


def test_the_readers_own_program_works(native: Native, engines: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(blocks("cmake")[0])
    (tmp_path / "mine.cpp").write_text(blocks("cpp")[0])
    quickly("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={native.prefix}")
    quickly("cmake", "--build", tmp_path / "build")
    assert run(tmp_path / "build/mine", engines["int8"]).count("class ") == 3


def test_the_example_is_configured_without_an_installed_library(root: Path, tmp_path: Path) -> None:
    shown = quickly("cmake", "-S", root / "examples/cpp/classify", "-B", tmp_path)
    assert "OpenVINO 20" in shown


@pytest.mark.skipif(CLANG is None, reason="libFuzzer comes with clang, which is not installed")
def test_the_readers_survive_a_short_fuzzing(build_folder: Folders) -> None:
    assert CLANG is not None
    folder = build_folder("fuzz")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cpp", "examples"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    configure, compile_, fuzz = (words for words in commands() if "fuzz" in words)
    assert "=clang " in configure
    configure = configure.replace("=clang ", f"={CLANG} ").replace(
        "=clang++", f"={CLANG.replace('clang', 'clang++')}"
    )
    for words in (configure, compile_):
        quickly("bash", "-e", "-c", f"cd {folder}\n{words}")
    assert "-max_total_time=600" in fuzz
    shown = run(
        "bash", "-e", "-c", f"cd {folder}\n{fuzz.replace('-max_total_time=600', '-runs=3000 -seed=1')}"
    )
    assert "Done 3000 runs" in shown


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_pkg_config_finds_the_library_after_its_folder_moved(native: Native, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(native.prefix, moved, symlinks=True)
    asked = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "rescompile"], check=True, capture_output=True, text=True,
        env={**os.environ, "PKG_CONFIG_PATH": str(moved / "lib/pkgconfig")},
    ).stdout.split()  # fmt: skip
    folders = [Path(word[2:]).resolve() for word in asked if word[:2] in ("-I", "-L")]
    assert set(folders) == {(moved / "include").resolve(), (moved / "lib").resolve()}
    assert "-lrescompile" in asked
    assert (moved / "include/rescompile/rescompile.hpp").is_file()
    assert next((moved / "lib").glob("librescompile.*")).is_file()

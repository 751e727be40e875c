"""Shipped files: the source archive's list, the image for servers, the metadata."""

from __future__ import annotations

import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = SETTINGS["project"]


def test_the_source_archive_has_every_folder_of_the_project() -> None:
    listed = re.findall(r"^graft (\S+)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.MULTILINE)
    packages = {"rescompile", "calibration", "fused_kernels"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {*listed, *packages} >= folders - {"shared", "build", "dist", "quickstart", "rescompile.egg-info"}
    for name in re.findall(r"^include (.+)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.MULTILINE)[
        0
    ].split():
        assert (ROOT / name).is_file()


def test_the_image_installs_the_base_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    copied = {name for words in steps if words[0] == "COPY" for name in words[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {"rescompile", "calibration", "fused_kernels", "pyproject.toml", "README.md", "LICENSE"}
    (install,) = [" ".join(words) for words in steps if "install" in words]
    assert "--constraint constraints.txt . " in install
    assert [words[1] for words in steps if words[0] == "USER"] == ["engine"]


def test_every_extra_but_those_of_gpus_can_build() -> None:
    extras = PROJECT["optional-dependencies"]
    alone = {"build", "tensorrt", "tensorrt-rtx", "cuda", "sign", "docs"}
    assert all(
        any(need.startswith("rescompile[build") for need in extras[name]) for name in set(extras) - alone
    )
    names = {word for need in extras["all"] for word in need.partition("[")[2].rstrip("]").split(",")}
    assert names <= set(extras)


def test_every_package_of_the_base_has_digests_of_the_tested_version() -> None:
    tested = set(re.findall(r"^([\w.-]+==\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    hashed = (ROOT / "constraints-hashed.txt").read_text("utf-8").replace("\\\n", " ").splitlines()
    entries = [line.split() for line in hashed if not line.startswith("#")]
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in tested}
    assert {re.sub(r"[-_.]+", "-", words[0]).lower() for words in entries} <= names
    assert all(len(words) > 1 and all("--hash=sha256:" in word for word in words[1:]) for words in entries)
    needed = {re.split(r"[>=<]", need)[0] for need in PROJECT["dependencies"]}
    assert needed <= {words[0].partition("==")[0] for words in entries}


def test_every_parser_whose_coverage_is_asked_exists() -> None:
    for pattern in SETTINGS["tool"]["coverage"]["report"]["include"]:
        assert list(ROOT.glob(pattern)), f"{pattern}: the file was renamed, and nothing asks for its coverage"

"""Every command of the README runs, in the order in which a reader meets it; every link leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")

ELSEWHERE = {
    "make quickstart": (".ci/run", 'make -C "$copy/rescompile" quickstart'),
    "make test": (".ci/run", "make test"),
    "pip install .": ("Makefile", "pip install --quiet --constraint constraints.txt . scikit-learn"),
    "rescompile build --depth 101 --precision int8": (
        "tests/sources/test_published_weights.py",
        "build --depth 101 --precision int8",
    ),
}
"""Commands that are run by something else than this file, and where."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which ``quickstart/`` is what ``make quickstart`` leaves, from a shorter training."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, of the extra dev")
    folder = tmp_path_factory.mktemp("reader")
    train = [sys.executable, ROOT / "examples/digits/train.py", "--output", "quickstart", "--epochs", "3"]
    subprocess.run(train, cwd=folder, check=True, capture_output=True)
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # tests of the kernels switch Triton's interpreter on for their process; a reader's shell has it off
    shell = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=shell)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def test_commands_run_elsewhere_are_run_there() -> None:
    for command, (file, text) in ELSEWHERE.items():
        assert command in commands()
        assert text in (ROOT / file).read_text("utf-8")


@pytest.mark.slow
def test_every_command_of_the_readme_works(folder: Path) -> None:
    absent = {
        option
        for option, module in (("tensorrt-rtx", "tensorrt_rtx"), ("--backend triton", "triton"))
        if importlib.util.find_spec(module) is None
    }
    ran = []
    for command in commands():
        if command in ELSEWHERE or any(option in command for option in absent):
            continue
        words = shlex.split(command)
        assert words[0] == "rescompile", f"this test does not know how to run: {command}"
        run([sys.executable, "-m", *words], folder)
        ran.append(words[1])
    assert {"doctor", "build", "inspect", "verify", "run", "calibrate"} <= set(ran)
    assert "verified" in run([sys.executable, "-m", "rescompile", "inspect", "digits-int8"], folder).stdout
    runtime, training = blocks("python")
    assert "6" in run([sys.executable, "-c", runtime], folder).stdout
    fused = run([sys.executable, "-c", training], folder).stdout
    assert fused.count("fused  layer") == 9


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_lint_rule_is_documented() -> None:
    from rescompile.graph.lint import RULES

    page = (ROOT / "docs/fusion-contract.md").read_text("utf-8")
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)
    assert documented == list(RULES)


@pytest.mark.parametrize(
    "command",
    [
        "build",
        "calibrate",
        "verify",
        "run",
        "inspect",
        "doctor",
        "compare",
        "sensitivity",
        "bench",
        "profile",
        "report",
        "export-server",
    ],
)
def test_help_of_every_command_has_an_example(command: str) -> None:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    shown = subprocess.run(
        [sys.executable, "-m", "rescompile", command, "--help"],
        capture_output=True, text=True, check=True, env=environment,
    ).stdout  # fmt: skip
    assert f"rescompile {command}" in shown
    assert "Example" in shown

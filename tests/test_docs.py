"""Every command of the README runs in its order; links, names of modules and files, and terms in the docs are right."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from rescompile.cli.app import app
from rescompile.presenting.terms import TERMS
from tests.commands import succeeds

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PACKAGES = "rescompile|calibration|fused_kernels|benchmarks"
FOLDERS = ("", "cpp/include", "rescompile", "fused_kernels", "benchmarks", "benchmarks/traffic")
"""Folders that a path in the docs may start from."""
NOT_MODULES = {"calibration.json", "calibration.npz", "rescompile.factors"}
"""Files of users and metadata of graphs, with names like those of modules."""

ELSEWHERE = {
    "make quickstart": (".ci/run", 'make -C "$copy/rescompile" quickstart'),
    "pip install '.[build]'": ("Makefile", "--constraint constraints.txt '.[build]' scikit-learn"),
    "make test": (".ci/run", "make test"),
    "pip install .": ("Makefile", "pip install --quiet --constraint constraints.txt .\n"),
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", "--output", str(folder / "quickstart"), "--epochs", "2"])
        runpy.run_path(str(ROOT / "examples/digits/train.py"), run_name="__main__")
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


def briefly(words: list[str]) -> list[str]:
    """The same command, measuring for less time than a page says: of an option that comes twice the last counts."""
    shorter = {"bench": ["--seconds", "0.3", "--starts", "1"], "profile": ["--seconds", "0.3"]}
    return words + shorter.get(words[0] if "--compare" not in words else "", [])


def printed(program: str) -> str:
    """What a program of a page prints, run in this process."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(program, "program of the page", "exec"), {"__name__": "__main__"})
    return out.getvalue()


@pytest.mark.slow
def test_every_command_of_the_readme_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
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
        # the first in a process of its own, as a reader types it; the others would import torch again
        run([sys.executable, "-m", *words], folder) if not ran else succeeds(*briefly(words[1:]))
        ran.append(words[1])
    assert {"doctor", "build", "inspect", "verify", "run", "calibrate"} <= set(ran)
    assert "verified" in succeeds("inspect", "digits-int8")
    runtime, training = blocks("python")
    assert "6" in printed(runtime)
    # not here, where tests of the kernels switch Triton's interpreter on
    fused = run([sys.executable, "-c", training], folder).stdout
    assert fused.count("fused  layer") == 9


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
        if "://" not in target:
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(found), f"{page.name} links to {target}#{anchor}"


def text_about_today(page: Path) -> str:
    """A page without old names: of the changelog only what is unreleased, without the first column of its table."""
    text = page.read_text("utf-8")
    if page.name != "CHANGELOG.md":
        return text
    unreleased = text.partition("## 0.2.0, unreleased")[2].partition("\n## ")[0]
    return "\n".join(line.split("|")[2] for line in unreleased.splitlines() if line.startswith("  |"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_files_that_a_page_names_exist(page: Path) -> None:
    text = text_about_today(page)
    paths = re.findall(rf"(?<![\w./-])(?:{PACKAGES}|tests|scripts|cpp|examples|docs)/[\w./-]*\w/?", text)
    for path in {*paths, *re.findall(r"`([\w/]+\.py)`", text)}:
        if "/DEVICE/" not in path:
            assert any((ROOT / folder / path).exists() for folder in FOLDERS), f"there is no {path}"
    for name in set(re.findall(rf"(?<![\w./-])(?:{PACKAGES})(?:\.\w+)+", text)) - NOT_MODULES:
        assert exists(name), f"there is no {name}"


def exists(name: str) -> bool:
    """Whether ``name`` is a module, or something in one."""
    try:
        if importlib.util.find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass
    home, _, member = name.rpartition(".")
    return hasattr(importlib.import_module(home), member)


def test_functions_that_the_derivations_name_exist() -> None:
    for page in (ROOT / "docs/math").glob("*.md"):
        for module, name in re.findall(r"`(\w+)\.(?!py)(\w+)`", page.read_text("utf-8")):
            sources = [path.read_text("utf-8") for path in (ROOT / "fused_kernels").rglob(f"{module}.py")]
            assert any(f"def {name}(" in source for source in sources), f"{page.name}: {module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_names_exist(page: Path) -> None:
    known = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    if page.name != "CHANGELOG.md":  # it also names commands that are gone
        text = page.read_text("utf-8")
        code = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        named = re.findall(r"^rescompile ([a-z-]+)", code, re.MULTILINE) + re.findall(
            r"`rescompile ([a-z-]+)", text
        )
        assert set(named) <= known


def test_the_glossary_defines_each_term_once_and_as_reports_do() -> None:
    text = (ROOT / "docs/glossary.md").read_text("utf-8")
    entries = re.findall(r"^### (.+)\n\n((?:.+\n)+)", text, re.MULTILINE)
    meanings = {term: " ".join(meaning.split()) for term, meaning in entries}
    assert len(meanings) == len(entries) == text.count("\n### ")
    for term, meaning in TERMS.items():
        assert meanings[term].startswith(meaning), term


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
        "keygen",
        "sign",
    ],
)
def test_help_of_every_command_has_an_example(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = succeeds(command, "--help")
    assert f"rescompile {command}" in shown
    assert "Example" in shown

"""Who may import whom, checked on the source: the house in docs/adr and CONTRIBUTING.md, as a test."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import calibration
import rescompile

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "rescompile").rglob("*.py"), *(ROOT / "calibration").rglob("*.py")])
OPTIONAL = {"tensorrt", "tensorrt_rtx", "pycuda", "triton"}
HEAVY = {"torch", "onnx", "onnx_graphsurgeon", "onnxruntime", "openvino", "matplotlib", "google"}
SIBLINGS = {"calibration", "fused_kernels"} & {path.name for path in ROOT.iterdir()}
BOTTOM = {"cache", "errors", "version", "manifest", "optional", "files", "metrics"}
GRAPH_HELPERS = {"constant_channels", "factors", "notes", "offsets", "surgeon", "topology", "vocabulary"}


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Modules that ``path`` imports when it runs; type checking does not count."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if top_level and isinstance(node, ast.FunctionDef):
            skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", sorted(SIBLINGS))
def test_siblings_stand_alone(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            other = name.split(".")[0] in {"rescompile", *SIBLINGS} - {package}
            assert not other, f"{path.name} imports {name}"


@pytest.mark.parametrize("package", ["models", "backends"])
def test_models_and_backends_stand_on_the_bottom_alone(package: str) -> None:
    for path in (ROOT / "rescompile" / package).rglob("*.py"):
        for name in imports(path):
            if not name.startswith("rescompile."):
                continue
            # a backend that lowers the deployable graph reads it with the helpers of its makers, and undoes a stage
            known = [["graph", each] for each in (*GRAPH_HELPERS, "full_range")]
            lowers = package == "backends" and name.split(".")[1:3] in known
            assert lowers or name.split(".")[1] in {package, *BOTTOM}, f"{package}/{path.name} imports {name}"


def test_thresholds_and_scales_need_numpy_alone() -> None:
    for name in ("methods/thresholds", "scales", "statistics/observers"):
        packages = {module.split(".")[0] for module in imports(ROOT / f"calibration/{name}.py")}
        assert packages - set(sys.stdlib_module_names) == {"calibration", "numpy"}


def test_stages_of_the_graph_do_not_know_each_other() -> None:
    for path in (ROOT / "rescompile/graph").glob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["rescompile", "graph"] and len(parts) > 2:
                one_stage = parts[2].startswith("lint_") and path.stem.startswith("lint")
                assert one_stage or parts[2] in GRAPH_HELPERS, f"{path.name} imports {name}"


def test_only_the_pipeline_and_the_commands_know_the_order() -> None:
    for path in SOURCES:
        for name in imports(path):
            if name == "rescompile.pipeline":
                assert path.name in {"cli_build.py", "__init__.py"}, f"{path.name} imports the pipeline"
            if name == "rescompile.cli":
                assert path.name == "__main__.py", f"{path.name} imports the command line"
    assert len((ROOT / "rescompile/pipeline.py").read_text().splitlines()) <= 80


def test_the_bottom_knows_nothing_above_it() -> None:
    for name in ("errors", "version", "manifest", "report", "optional"):
        found = {
            module for module in imports(ROOT / f"rescompile/{name}.py") if module.startswith("rescompile.")
        }
        above = {module for module in found if module.split(".")[1] not in {"errors", "version", "manifest"}}
        assert not above, f"{name}.py imports {above}"


def test_optional_packages_come_through_one_door() -> None:
    for path in SOURCES:
        for name in imports(path):
            assert name.split(".")[0] not in OPTIONAL, (
                f"{path.name} imports {name}; use rescompile.optional.require"
            )


@pytest.mark.parametrize(
    "path",
    [
        "errors",
        "config",
        "manifest",
        "engine",
        "engine_inputs",
        "golden_file",
        "sealing",
        "cli",
        "cli_build",
        "cli_engine",
        "cli_verdict",
        "options",
        "report",
        "backends/openvino",
    ],
)
def test_light_modules_import_nothing_heavy_at_the_top(path: str) -> None:
    names = {name.split(".")[0] for name in imports(ROOT / f"rescompile/{path}.py", top_level=True)}
    assert not names & HEAVY


@pytest.mark.parametrize("code", ["import rescompile", "import rescompile.engine", "import rescompile.cli"])
def test_starting_loads_nothing_heavy(code: str) -> None:
    program = f"import sys; {code}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(loaded) & HEAVY


def test_every_module_imports_and_has_a_docstring() -> None:
    for package in (rescompile, calibration):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                assert importlib.import_module(module.name).__doc__, module.name


def test_the_public_names_are_complete_and_sorted() -> None:
    assert rescompile.__all__ == sorted(rescompile.__all__)
    for name in rescompile.__all__:
        assert getattr(rescompile, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rescompile.nothing


def test_the_project_speaks_of_itself_alone() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("this is no git checkout: which files are the project's is not known")
    for name in tracked:
        if name.endswith((".py", ".md", ".toml", ".sh", "Makefile")) and name != "tests/test_architecture.py":
            text = (ROOT / name).read_text("utf-8")
            for word in ("/work/", "/root/", "/home/", "pypi.org", "pythonhosted"):
                assert word not in text, f"{name} names {word}"

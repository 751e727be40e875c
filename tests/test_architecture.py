"""The order of imports that CONTRIBUTING.md describes, checked on the source."""

from __future__ import annotations

import ast
import graphlib
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import calibration
import rescompile

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "rescompile").rglob("*.py"), *(ROOT / "calibration").rglob("*.py")])
PRODUCT = [*SOURCES, *sorted((ROOT / "fused_kernels").rglob("*.py"))]
OPTIONAL = {
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "triton",
    "h5py",
    "timm",
    "torchvision",
    "transformers",
    "sklearn",
}
HEAVY = {"torch", "onnx", "onnx_graphsurgeon", "onnxruntime", "openvino", "matplotlib", "jinja2", "google"}
SIBLINGS = ("calibration", "fused_kernels")
LAYERS = (
    ("errors", "version", "wording"),
    ("engine_files",),
    ("manifest",),
    ("files", "optional"),
    ("cache",),
    ("report",),
    ("training_report",),
    ("metrics", "progress"),
    ("models",),
    ("graph",),
    ("sources", "backends"),
    ("environment",),
    ("config",),
    ("runtime",),
    ("measuring",),
    ("accuracy",),
    ("presenting",),
    ("building", "serving"),
    ("pipeline", "training"),
    ("cli",),
    ("__main__",),
)
"""From the bottom up: a room imports from rooms below its own line and from itself."""
HOME = re.compile(r"/(?:home|Users)/\w+")


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


@pytest.mark.parametrize("package", SIBLINGS)
def test_siblings_stand_alone(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            other = name.split(".")[0] in {"rescompile", *SIBLINGS} - {package}
            assert not other, f"{path.name} imports {name}"


def module_of(path: Path) -> str:
    """``rescompile/graph/fold.py`` as ``rescompile.graph.fold``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PRODUCT}


def room_of(module: str) -> str:
    """The folder below ``rescompile`` that holds a module, or its own name where it lies at the top."""
    return module.split(".")[1]


def arrows() -> Iterator[tuple[str, str]]:
    """(module, module that it imports) for all modules of the three packages."""
    for module, path in MODULES.items():
        for name in imports(path):
            if name in MODULES and name != module:
                yield module, name


def arrows_of_rooms() -> Iterator[tuple[str, str]]:
    """The arrows between modules of ``rescompile``."""
    for module, name in arrows():
        if module.startswith("rescompile.") and name.startswith("rescompile."):
            yield module, name


def test_every_room_has_a_layer() -> None:
    known = {room for layer in LAYERS for room in layer}
    assert {room_of(module) for module in MODULES if module.startswith("rescompile.")} == known


def test_at_most_sixteen_modules_lie_at_the_top() -> None:
    assert len(list((ROOT / "rescompile").glob("*.py"))) <= 16


def test_no_arrow_runs_up() -> None:
    height = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    up = [
        f"{module} imports {name}"
        for module, name in arrows_of_rooms()
        if room_of(module) != room_of(name) and height[room_of(module)] <= height[room_of(name)]
    ]
    assert not up, "\n".join(sorted(set(up)))


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    for module, name in arrows():
        # a package does not import what it contains by being imported along with it
        if not name.startswith(f"{module}.") and not module.startswith(f"{name}."):
            graph.setdefault(module, set()).add(name)
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def test_no_private_name_of_another_module_is_used() -> None:
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text("utf-8"))
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private or node.module == "__future__", f"{module} imports {private}"
                modules |= {
                    alias.asname or alias.name
                    for alias in node.names
                    if f"{node.module}.{alias.name}" in MODULES
                }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not (private and node.value.id in modules), (
                    f"{module} uses {node.value.id}.{node.attr}"
                )


def test_thresholds_and_scales_need_numpy_alone() -> None:
    for name in ("methods/thresholds", "scales", "statistics/observers"):
        packages = {module.split(".")[0] for module in imports(ROOT / f"calibration/{name}.py")}
        assert packages - set(sys.stdlib_module_names) == {"calibration", "numpy"}


def test_stages_of_the_graph_do_not_know_each_other() -> None:
    for module, name in arrows_of_rooms():
        if room_of(module) == room_of(name) == "graph":
            here, there = module.split(".")[2], name.split(".")[2]
            assert there in ("shared", here), f"{module} imports {name}"


def test_only_the_pipeline_and_the_commands_know_the_order() -> None:
    for path in SOURCES:
        for name in imports(path):
            if name == "rescompile.pipeline":
                assert path.name in {"build.py", "__init__.py"}, f"{path.name} imports the pipeline"
            if name == "rescompile.cli.app":
                assert path.name == "__main__.py" or path.parent.name == "cli", (
                    f"{path.name} imports the command line"
                )
    assert len((ROOT / "rescompile/pipeline.py").read_text().splitlines()) <= 84


def test_what_is_shown_is_made_from_records_alone() -> None:
    for module, path in MODULES.items():
        if module.startswith("rescompile.presenting."):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    ("rescompile.measuring.", "rescompile.accuracy.")
                ):
                    functions = [alias.name for alias in node.names if not alias.name[0].isupper()]
                    assert not functions, f"{module} imports {functions} of {node.module}"


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
        "backends/openvino/backend",
        "cli/app",
        "cli/build",
        "cli/engine",
        "cli/options/calibration",
        "cli/options/engine",
        "cli/options/network",
        "cli/options/preprocessing",
        "cli/options/shared",
        "cli/options/verdict",
        "cli/output",
        "report",
        "runtime/engine",
        "runtime/golden",
        "runtime/inputs",
    ],
)
def test_light_modules_import_nothing_heavy_at_the_top(path: str) -> None:
    names = {name.split(".")[0] for name in imports(ROOT / f"rescompile/{path}.py", top_level=True)}
    assert not names & HEAVY


@pytest.mark.parametrize("code", ["import rescompile.runtime.engine", "import rescompile.cli.app"])
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


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    tracked = listed.stdout.split()
    if not tracked:
        pytest.skip("this is not a git checkout: which files are the project's is not known")
    here = str(ROOT.resolve())
    for name in tracked:
        if name.endswith((".py", ".md", ".toml", ".sh", ".json", ".jsonl", "Makefile")):
            text = (ROOT / name).read_text("utf-8")
            assert here not in text, f"{name} names the folder of this checkout"
            assert not HOME.search(text), f"{name} names a home folder"

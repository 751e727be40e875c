"""Imports inside ``fused_kernels``: down a list of layers, and without Triton."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fused_kernels

ROOT = Path(fused_kernels.__file__).parent
LAYERS = [
    "errors",
    "operands",
    "tiles",
    "problem",
    "specification",
    "gpus",
    "launch",
    "table",
    "candidates",
    "choice",
    "references",
    "ops",
    "blocks",
    "modules",
    "fusing",
    "graphs",
    "compiling",
    "tune",
]
"""Modules and folders below ``fused_kernels``, each of which may import the ones before it."""
FILES = [
    path for path in ROOT.rglob("*.py") if path.parent.name != "kernels" and path != ROOT / "__init__.py"
]


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import from this package."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fused_kernels"):
            yield from ((node.module or "", alias.name) for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Imports are read, not executed."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = LAYERS.index(layer(path))
    for module, name in imported(path):
        target = [*module.split("."), name][1]
        assert LAYERS.index(target) <= own, f"{path.name} imports {target}"


def test_modules_and_operations_are_imported_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import fused_kernels.modules, fused_kernels.ops"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)

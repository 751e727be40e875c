"""Imports the packages of extras when they are used; where one is missing, the error has the command to type.

The base installation runs, judges and measures engines. Everything else is an extra of ``pyproject.toml``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rescompile.errors import BackendUnavailable

BUILD = ("torch", "onnx", "onnx_graphsurgeon", "onnxruntime", "safetensors", "matplotlib", "jinja2")
"""Modules that the extra ``build`` brings."""

EXTRA_OF = {
    **dict.fromkeys(BUILD, "build"),
    "google": "build",  # protobuf, which comes with onnx
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "pycuda": "cuda",
    "triton": "triton",
    "h5py": "keras",
    "cryptography.exceptions": "sign",
    "cryptography.hazmat.primitives.asymmetric.ed25519": "sign",
    "cryptography.hazmat.primitives.serialization": "sign",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "hf",
    "sklearn": "train",
    "torchvision.transforms.v2": "train",
}
"""Package to the extra of this project that installs it; all other packages are always installed."""


def installed(module: str) -> bool:
    """Whether ``module`` could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # ValueError: a module that was put into sys.modules by hand
        return False


def how_to_install(module: str) -> str:
    """The command that installs ``module``: its extra, or this project again."""
    extra, source = EXTRA_OF.get(module, EXTRA_OF.get(module.partition(".")[0])), _source()
    return f"pip install '{source}[{extra}]'" if extra else f"pip install --force-reinstall '{source}'"


def require(module: str, purpose: str) -> Any:
    """Import ``module``; where it is missing, the error says its ``purpose`` and how to install it.

    Raises:
        BackendUnavailable: the module is not installed, or its shared libraries do not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"{purpose} needs the package '{module}', which cannot be imported here ({error}): "
            f"run {how_to_install(module)}"
        ) from error


@contextmanager
def extras_for(purpose: str) -> Iterator[None]:
    """Turn a missing package of an extra into one sentence; ``purpose`` needs it.

    Raises:
        BackendUnavailable: an import found no such package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        raise BackendUnavailable(
            f"{purpose} needs the package '{package}', which is not installed here: run {how_to_install(package)}"
        ) from error


def _source() -> str:
    """The argument for pip that installs this project again: the folder that it came from, else its name."""
    checkout = Path(__file__).parent.parent
    if (checkout / "pyproject.toml").is_file():
        return _quotable(checkout)
    try:
        origin = json.loads(metadata.distribution("rescompile").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return "rescompile"
    folder = Path(unquote(urlsplit(str(origin.get("url"))).path))
    return _quotable(folder) if "dir_info" in origin and folder.is_dir() else "rescompile"


def _quotable(folder: Path) -> str:
    """The path inside of the command's own quotation marks."""
    return shlex.quote(str(folder)).strip("'")

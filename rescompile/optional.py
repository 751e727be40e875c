"""Imports optional packages when they are used; the error says which extra to install."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from rescompile.errors import BackendUnavailable

EXTRA_OF = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "pycuda": "cuda",
    "pycuda.driver": "cuda",
    "triton": "triton",
    "h5py": "keras",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "hf",
    "sklearn": "train",
    "torchvision.transforms.v2": "train",
}
"""Module to the extra of this project that installs it; all other packages are always installed."""


def installed(module: str) -> bool:
    """Whether ``module`` could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def how_to_install(module: str) -> str:
    """The install line for ``module``: its extra, or the package itself."""
    extra = EXTRA_OF.get(module)
    return f"pip install 'rescompile[{extra}]'" if extra else "pip install --force-reinstall rescompile"


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

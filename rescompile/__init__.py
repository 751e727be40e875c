"""Builds the fastest engine of a ResNet checkpoint that still gives the right answers.

>>> import rescompile
>>> engine = rescompile.load("resnet50-int8-openvino")  # doctest: +SKIP
>>> engine.classify("photo.jpg")  # doctest: +SKIP

Names are imported when they are first used: ``import rescompile`` loads neither torch nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rescompile import version

if TYPE_CHECKING:
    from rescompile.backends.base import RunOptions
    from rescompile.config import BuildConfig
    from rescompile.errors import RescompileError
    from rescompile.pipeline import build
    from rescompile.report import BuildReport, Limits
    from rescompile.runtime.engine import Engine
    from rescompile.runtime.loading import load

__version__ = version.VERSION

__all__ = [
    "BuildConfig",
    "BuildReport",
    "Engine",
    "Limits",
    "RescompileError",
    "RunOptions",
    "__version__",
    "build",
    "load",
]

_HOME = {
    "BuildConfig": "config",
    "BuildReport": "report",
    "Engine": "runtime.engine",
    "Limits": "report",
    "RescompileError": "errors",
    "RunOptions": "backends.base",
    "build": "pipeline",
    "load": "runtime.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rescompile' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"rescompile.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Builds the fastest engine of a ResNet checkpoint that still gives the right answers.

>>> import rescompile
>>> report = rescompile.build(model, calibration="photos", output="resnet50-int8")  # doctest: +SKIP
>>> engine = rescompile.load("resnet50-int8")  # doctest: +SKIP
>>> engine.classify("photo.jpg")  # doctest: +SKIP

Names are imported when they are first used: ``import rescompile`` loads neither torch nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rescompile import version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn
    from typing_extensions import Unpack

    from rescompile.backends.base import RunOptions
    from rescompile.building.from_python import BuildOptions
    from rescompile.config import BuildConfig
    from rescompile.errors import RescompileError
    from rescompile.progress import Progress
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
    "load": "runtime.loading",
}


def build(
    network: BuildConfig | nn.Module | Sequence[nn.Module | str | Path] | str | Path,
    progress: Progress | None = None,
    **options: Unpack[BuildOptions],
) -> BuildReport:
    """Network to engine directory and verdict; ``bool(report)`` tells whether the engine may ship.

    ``network`` is a live module, the path of a checkpoint or ONNX file, a list of several whose answers are averaged
    (an ensemble), a name such as ``resnet50`` or ``timm:resnet50d.ra2_in1k``, or a whole ``BuildConfig``, which
    takes no ``options``.

    Raises:
        RescompileError, CalibrationError: what a user can mend; the output then does not exist.
        TypeError: ``network`` is none of these, or a keyword does not exist.
    """
    from rescompile.optional import extras_for

    with extras_for("rescompile.build"):
        from rescompile import pipeline
        from rescompile.building.from_python import build_config

    return pipeline.build(build_config(network, options), progress)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rescompile' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"rescompile.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Cache of compiled OpenVINO engines: reading and compiling ResNet-50 takes most of the time of a start.

A compilation is valid for the bytes of one payload, one build of OpenVINO, one processor, one set of settings and one
batch size or range, which its key names. It is stored only after the engine's hashes and golden answers were right.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescompile.backends.base import RunOptions
from rescompile.backends.cpu.forms import CPUINFO
from rescompile.backends.openvino.compile import core
from rescompile.cache import CompiledEngines, compiled_engines, key_of
from rescompile.engine_files import EngineFiles

_FORMAT = "1"
_IDENTITY = ("model name", "flags", "Features", "CPU part")


class CompiledModels:
    """The place of one compilation of an engine in the cache."""

    def __init__(self, store: CompiledEngines, key: str, settings: Mapping[str, Any]) -> None:
        self._store, self._key, self._settings = store, key, dict(settings)

    def read(self) -> Any | None:
        """The compiled model, or None where it is not in the cache."""
        content = self._store.read(self._key)
        if content is None:
            return None
        try:
            return core().import_model(content, "CPU", self._settings)
        except RuntimeError:
            self._store.forget(self._key)
            return None

    def forget(self) -> bool:
        """Remove the compiled model from the cache; returns whether it is gone."""
        return self._store.forget(self._key)

    def write(self, compiled: Any) -> None:
        """Store ``compiled``, unless this OpenVINO cannot export it."""
        try:
            content = compiled.export_model()
        except RuntimeError:
            return
        # a stream or its bytes, depending on the version
        self._store.write(self._key, content if isinstance(content, bytes) else content.getvalue())


def compiled_models(
    files: EngineFiles,
    names: tuple[str, ...],
    options: RunOptions,
    settings: Mapping[str, Any],
    more: Sequence[str] = (),
) -> CompiledModels | None:
    """The cache of the payload ``names``, compiled with ``settings`` and what ``more`` says; None where it is switched
    off."""
    store = compiled_engines(options.cache_folder)
    if store is None:
        return None
    digests = [files.digest(name) for name in names]
    import openvino as ov

    words = [f"{name}={value}" for name, value in sorted(settings.items())]
    key = key_of([_FORMAT, "openvino", ov.get_version(), *processor(), *digests, *words, *more])
    return CompiledModels(store, key, settings)


def processor(cpuinfo: Path = CPUINFO) -> list[str]:
    """Lines that identify the kind of processor."""
    found = [platform.machine(), platform.system()]
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return [*found, platform.processor()]
    pairs = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))
    }
    return [*found, *(f"{name}: {pairs[name]}" for name in _IDENTITY if name in pairs)]

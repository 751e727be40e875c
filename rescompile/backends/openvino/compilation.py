"""Compiled models of one engine: for the batch size of most of its calls, and for all that it takes.

OpenVINO computes a model of one batch size faster than a model of a range, whose layers' sizes it looks at anew in each
call. ``docs/adr/0019-one-batch-size.md`` has the figures.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rescompile.backends.base import RunOptions
from rescompile.backends.cpu import forms
from rescompile.backends.openvino.cache import CompiledModels, compiled_models
from rescompile.backends.openvino.compile import (
    check_not_forked,
    compile_noting,
    settings_of,
    translate_errors,
)
from rescompile.backends.openvino.executable import executable, warn_of_another_form
from rescompile.engine_files import EngineFiles
from rescompile.errors import EngineError
from rescompile.manifest import OPENVINO_MODEL, Manifest

MOST_IMAGES, MOST_VALUES = 64, 1 << 25
"""Engines that were tuned for more images at once, or for images of more values together, are compiled for their range
alone: a load would need the memory and the time of so many, and little is gained."""
_ELEMENTS = {"float32": "f32", "uint8": "u8"}
"""OpenVINO's names of types."""


class Compilation:
    """A compiled model, and its place in the cache."""

    def __init__(self, model: Any, cache: CompiledModels | None = None, *, from_cache: bool = False) -> None:
        self.model, self._cache, self._from_cache = model, cache, from_cache

    def store(self) -> None:
        """Store the model for the next load, unless it came from there."""
        if self._cache is not None and self.model is not None and not self._from_cache:
            self._cache.write(self.model)

    def forget(self) -> bool:
        """Remove the model from the cache if it came from there; returns whether it would be compiled now."""
        return self._cache is not None and self._from_cache and self._cache.forget()

    def close(self) -> None:
        """Drop the model; its requests keep it until they are dropped."""
        self.model = None


def fixed_batch(manifest: Manifest, options: RunOptions) -> int | None:
    """The batch size that gets a compiled model of its own; None where one model serves all sizes."""
    batch = manifest.batch
    if batch.min == batch.max or manifest.sizes is not None:
        return None
    values = batch.opt * math.prod(manifest.inputs[0].shape[1:])
    if options.batch is None and (batch.opt > MOST_IMAGES or values > MOST_VALUES):
        return None
    return options.batch or batch.opt


class EngineCompiler:
    """Compiles the engine in ``files`` for this CPU, or takes what an earlier load stored.

    Args:
        files: its payload.
        names: the files that a compilation depends on.
        manifest: of the engine.
        options: threads, hint, streams, cache, and the batch size that is compiled by itself.
    """

    def __init__(
        self, files: EngineFiles, names: tuple[str, ...], manifest: Manifest, options: RunOptions
    ) -> None:
        self._files, self._names = files, names
        self._manifest, self._options = manifest, options
        self.fixed = fixed_batch(manifest, options)
        """See ``fixed_batch``."""

    def first(self) -> Compilation:
        """The model for ``fixed`` images, which the first call is expected to have.

        Raises:
            BackendError: OpenVINO refuses the payload.
            BackendUnavailable: this CPU cannot execute it exactly.
            EngineError: the payload does not fit the manifest.
        """
        return self._compilation(self._files, self.fixed, warn=True)

    def rest(self) -> Compilation:
        """The model for every batch size of the engine; raises what ``first`` does.

        Its files are read again, and an EngineError is raised if they were changed.
        """
        return self._compilation(self._files, None, warn=False)

    def for_later(self) -> EngineCompiler:
        """The same without the payload in memory."""
        return EngineCompiler(self._files.for_later(), self._names, self._manifest, self._options)

    def _compilation(self, files: EngineFiles, count: int | None, *, warn: bool) -> Compilation:
        check_not_forked()
        path = files.path(OPENVINO_MODEL)
        # the range, too, because the payload is compared with it only where it is compiled
        words = [] if count is None else [f"batch={count} of {self._manifest.batch}"]
        cache = compiled_models(files, self._names, self._options, settings_of(self._options), words)
        stored = None if cache is None else cache.read()
        if stored is not None:
            _check_ports(path, stored, self._manifest, count)
            if warn and not forms.computes_exactly(self._manifest.cpu_form):
                warn_of_another_form(path, self._manifest.cpu_form)
            return Compilation(stored, cache, from_cache=True)
        with translate_errors(f"OpenVINO cannot load {path}"):
            model = executable(files, self._manifest.cpu_form, warn=warn)
            _check_ports(path, model, self._manifest, None)
            compiled, notes = compile_noting(
                model if count is None else of_batch(model, count), self._options
            )
        # a setting that this OpenVINO does not know would be asked of the stored model, too
        return Compilation(compiled, None if notes else cache)


def of_batch(model: Any, count: int) -> Any:
    """The OpenVINO ``model``, changed to take ``count`` images at once and no other number."""
    shape = model.input(0).get_partial_shape()
    shape[0] = count
    model.reshape(shape)
    return model


def _check_ports(path: Path, model: Any, manifest: Manifest, count: int | None) -> None:
    """Raise an EngineError where input or output have another shape, type or range of batch sizes than the manifest.

    ``count`` is the only batch size of ``model``; None where it has the engine's range.
    """
    batch, images, sizes = manifest.batch, manifest.inputs[0], manifest.sizes
    ends = [images.shape[1:]] * 2 if sizes is None else [images.of_size(sizes.min), images.of_size(sizes.max)]
    counts = (batch.min, batch.max) if count is None else (count, count)
    bounds = [counts, *zip(*ends, strict=True)]
    if len(model.inputs) == 1 and len(model.outputs) == len(manifest.outputs):
        port = model.input(0)
        answered = [
            output.matches(tuple(port.get_partial_shape()))
            for output, port in zip(manifest.outputs, model.outputs, strict=True)
        ]
        found = [(size.get_min_length(), size.get_max_length()) for size in port.get_partial_shape()]
        element = port.get_element_type().get_type_name()
        if (found, element) == (bounds, _ELEMENTS[images.dtype]) and all(answered):
            return
    raise EngineError(f"{path} does not fit the manifest; build the engine again")

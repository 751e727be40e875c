"""Loads an engine: checks its directory, opens it with its backend, and tests it on its golden inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends import get_backend
from rescompile.backends.base import (
    RUN_DEFAULTS,
    CachesCompilation,
    CompilesLater,
    Hint,
    Runner,
    RunOptions,
    SimulatingBackend,
)
from rescompile.engine_files import EngineFiles
from rescompile.errors import EngineError, UsageError
from rescompile.manifest import Manifest
from rescompile.metrics import relative_rms
from rescompile.runtime.engine import Engine
from rescompile.runtime.golden import in_order, read_all_golden
from rescompile.runtime.integrity import CheckedEngine, read_engine


def load(
    directory: Path | str,
    *,
    verify: bool = True,
    hint: Hint | None = None,
    options: RunOptions = RUN_DEFAULTS,
    trusted_keys: Sequence[Path | str] = (),
) -> Engine:
    """Load the engine in ``directory`` and test it on its golden inputs.

    ``verify=False`` skips the hashes and the golden self-test, for a faster start of directories that were loaded
    before. ``hint="throughput"`` runs several calls at once: on a CPU with fewer threads each, on a GPU with one stream
    each (``options.streams``). ``"latency"`` gives one call the whole device; None uses ``options.hint``. With
    ``trusted_keys``, files of public keys of ``rescompile keygen``, an engine is loaded only if one of them signed it.

    Raises:
        UsageError: the hint is unknown, a key is not one, or keys are given without ``verify``.
        EngineError: the directory is damaged, incomplete or not signed by a trusted key, or the engine does not
            reproduce its golden answers.
        BackendUnavailable: the engine cannot run on this machine.
        BackendError: the backend's library refused the payload.
    """
    if hint is not None:
        options = replace(options, hint=hint)
    if trusted_keys and not verify:
        raise UsageError(
            "trusted keys were given, but without verification a signature says nothing about the files; leave one of "
            "the two out"
        )
    checked = read_trusted(Path(directory), trusted_keys, hashes=verify)
    return load_checked(checked, verify=verify, options=options)


def read_trusted(
    directory: Path, trusted_keys: Sequence[Path | str], *, hashes: bool = True, also: Sequence[str] = ()
) -> CheckedEngine:
    """``read_engine``, and check the signature where there are ``trusted_keys``; raises EngineError or UsageError."""
    if not trusted_keys:
        return read_engine(directory, hashes=hashes, also=also)
    from rescompile.runtime.signature import check_signature

    return read_engine(
        directory,
        hashes=hashes,
        also=also,
        check_text=lambda folder, text: check_signature(directory, folder, text, trusted_keys),
    )


def load_checked(
    checked: CheckedEngine, *, verify: bool = True, options: RunOptions = RUN_DEFAULTS
) -> Engine:
    """Load an engine that was read already, and test it on its golden inputs; it raises what ``load`` raises."""
    manifest, files = checked.manifest, checked.files
    if options.batch is not None and not manifest.batch.min <= options.batch <= manifest.batch.max:
        raise UsageError(
            f"most calls were said to have {options.batch} images, but the engine in {files.directory} takes "
            f"{manifest.batch.min} to {manifest.batch.max}; pass another RunOptions(batch=...)"
        )
    runner = get_backend(manifest.backend).load(files, manifest, options)
    engine = Engine(manifest, runner, check_finite=options.check_finite)
    if not verify:
        return engine
    fixed = runner.fixed if isinstance(runner, CompilesLater) else None
    try:
        _self_test_or_close(files, engine, fixed)
    except EngineError:
        if not (isinstance(runner, CachesCompilation) and runner.forget_compilation()):
            raise
        # what the cache held was wrong, not the engine: compile it
        return load_checked(checked, options=options)
    if isinstance(runner, CachesCompilation):
        runner.cache_compilation()
    if isinstance(runner, CompilesLater):
        runner.check_later(partial(_check_runner, files.for_later(), manifest))
    return engine


def _check_runner(files: EngineFiles, manifest: Manifest, runner: Runner) -> None:
    """Run the golden self-test with another ``runner`` of an engine, which is not closed and takes all batch sizes."""
    _self_test(files, Engine(manifest, runner), manifest.batch.max)


def simulate(checked: CheckedEngine) -> Engine | None:
    """Load the engine ``checked`` on its backend's simulator, for a device that this machine does not have.

    The golden self-test runs as in ``load``. None where the backend has no simulator.

    Raises:
        EngineError: the golden answers are not reproduced.
        BackendError: the payload was refused.
    """
    backend = get_backend(checked.manifest.backend)
    if not isinstance(backend, SimulatingBackend):
        return None
    engine = Engine(checked.manifest, backend.simulate(checked.files, checked.manifest))
    _self_test_or_close(checked.files, engine)
    return engine


def _self_test_or_close(files: EngineFiles, engine: Engine, fixed: int | None = None) -> None:
    """Run the golden self-test, and close the engine if it fails; ``fixed`` as in ``CompilesLater``."""
    try:
        # in batches that the engine was tuned for: libraries prepare each size when they first see it
        _self_test(files, engine, fixed or engine.manifest.batch.opt, whole=fixed is not None)
    except BaseException:
        engine.close()
        raise


def _self_test(files: EngineFiles, engine: Engine, size: int, *, whole: bool = False) -> None:
    """Run the golden inputs of each image size, ``size`` of them at once, the last ones too where these are ``whole``
    batches.

    Raises:
        EngineError: the answers are not the golden answers.
    """
    for images, expected in read_all_golden(files, engine.manifest):
        count = math.ceil(len(images) / size) * size if whole else len(images)
        picked = np.arange(count) % len(images)
        _check_answers(files, engine, images[picked], [golden[picked] for golden in expected], size)


def _check_answers(
    files: EngineFiles,
    engine: Engine,
    images: NDArray[Any],
    expected: Sequence[NDArray[np.float32]],
    size: int,
) -> None:
    """Run ``images``, ``size`` at once; raises EngineError where the answers are not as ``expected``."""
    parts = [
        in_order(engine(images[start : start + size]), engine.manifest)
        for start in range(0, len(images), size)
    ]
    # each output by itself: a loud one would hide the error of a quiet one
    error = max(
        relative_rms(golden, np.concatenate(found))
        for golden, found in zip(expected, zip(*parts, strict=True), strict=True)
    )
    allowed = engine.manifest.golden_relative_rms
    if not error <= allowed:  # NaN, too
        raise EngineError(
            f"the engine in {files.directory} does not reproduce its golden answers on this machine (relative RMS "
            f"{error:.3g}, allowed {allowed:g}); build it again here"
        )

"""How much faster an engine is than the fp32 network in the same library, in a race of about half a second."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.memory import free_memory
from calibration.preprocess import normalize
from rescompile.backends.fp32 import Fp32Session, OpenVinoSession
from rescompile.backends.onnxruntime import reference_session
from rescompile.engine_files import EngineSource
from rescompile.manifest import Manifest
from rescompile.measuring.disturbance import Watch
from rescompile.measuring.race import Contender, race
from rescompile.report import Speed
from rescompile.runtime.engine import Engine
from rescompile.runtime.golden import golden_batch

LIBRARIES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
"""Backends whose library runs an fp32 graph as it is; others would have to build a second engine."""
SECONDS = 0.5
"""Length of the race; large networks take longer, because there are at least five rounds."""
TURN_SECONDS = 0.02
REST = time.sleep


def measure_speed(engine: Engine, source: EngineSource, reference: bytes | Path) -> Speed | None:
    """``engine``, whose files are ``source``, against the fp32 graph ``reference``, or its file, on golden images.

    None where the backend's library does not run fp32 graphs.

    Raises:
        EngineError: a wrong answer at this batch size.
        BackendError: the library refuses the fp32 graph.
    """
    manifest = engine.manifest
    if manifest.backend not in LIBRARIES:
        return None
    images, check = golden_batch(source, manifest, manifest.batch.opt)
    free_memory()  # fp32 networks are read and compiled by way of several copies
    watch = Watch()
    times = race(
        {
            "engine": Contender(partial(engine, images), check),
            "fp32": Contender(partial(_session(manifest, reference), _floats(images, manifest)), _anything),
        },
        seconds=SECONDS,
        turn=TURN_SECONDS,
        rest=REST,
    )
    ours, fp32 = times["engine"], times["fp32"]
    return Speed(
        batch=manifest.batch.opt,
        library=LIBRARIES[manifest.backend],
        engine_ms=ours.p50,
        engine_interval=(ours.low, ours.high),
        fp32_ms=fp32.p50,
        fp32_interval=(fp32.low, fp32.high),
        engine_bytes=manifest.payload_bytes,
        fp32_bytes=len(reference) if isinstance(reference, bytes) else reference.stat().st_size,
        disturbances=tuple(watch.notes(times)),
    )


def _session(manifest: Manifest, reference: bytes | Path) -> Fp32Session:
    if manifest.backend == "openvino":
        return OpenVinoSession(reference)
    return reference_session(reference, optimize=True, spin=True)


def _floats(images: NDArray[np.generic], manifest: Manifest) -> NDArray[np.generic]:
    """``images`` of an engine as the fp32 network takes them; pixels are normalized before the race."""
    if manifest.inputs[0].dtype != "uint8":
        return images
    return normalize(np.asarray(images, np.uint8), manifest.preprocess)


def _anything(answer: object) -> None:
    """Accept every answer: the fp32 network is the one that engines are compared with."""

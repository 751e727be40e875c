"""Reports as a build would make them, for the tests of their views."""

from __future__ import annotations

from typing import Any

import numpy as np

from rescompile.manifest import CalibrationRef, CheckpointRef
from rescompile.report import (
    ActivationRange,
    BlockError,
    BuildReport,
    Check,
    FrontierPoint,
    FusedAdds,
    Limits,
    LintResult,
    StageRecord,
)


def blocks(count: int) -> tuple[BlockError, ...]:
    """A stem, residual blocks in four stages, and a classifier: ``count`` in all."""
    names = ["stem", *(f"layer{1 + 4 * i // count}.{i}" for i in range(count - 2)), "fc"]
    noise = np.random.default_rng(0).normal(30, 4, count)
    return tuple(BlockError(name, float(db), 0.999) for name, db in zip(names, noise, strict=True))


def ranges(count: int) -> tuple[ActivationRange, ...]:
    amax = np.exp(np.random.default_rng(1).normal(1, 1, count))
    return tuple(
        ActivationRange(f"layer{1 + 4 * i // count}.{i}.conv1", float(a), float(a) * 0.8)
        for i, a in enumerate(amax)
    )


def pairs(count: int) -> tuple[tuple[float, float], ...]:
    values = np.random.default_rng(2).normal(0, 3, count)
    return tuple((float(value), float(value) * 1.01) for value in values)


def frontier(count: int) -> tuple[FrontierPoint, ...]:
    """``count`` choices, from all eight blocks in FP16 to none; the last one misses a limit."""
    return tuple(
        FrontierPoint(
            fp16_blocks=("layer3.0",) * (index < count - 1),
            int8_blocks=8 * index // (count - 1),
            reformats=0 if index == 0 else 1 if index == count - 1 else 3,
            top1_agreement=1 - 0.02 * index / count,
            top1_engine=None,
            top1_drop=None if index else 0.5,
            relative_rms=0.01 * index,
            passed=index < count - 1,
        )
        for index in range(count)
    )


def report(**changes: Any) -> BuildReport:
    """A passing ResNet-50 INT8 build on OpenVINO, with ``changes``."""
    fields: dict[str, Any] = {
        "passed": True,
        "engine_executed": True,
        "measured_on": "openvino",
        "model": "resnet50",
        "precision": "int8",
        "backend": "openvino",
        "target": None,
        "engine_directory": "out/resnet50-int8-openvino",
        "images": 300,
        "image_source": "validation",
        "image_fingerprint": "ab" * 32,
        "top1_reference": 0.8333,
        "top1_engine": 0.8267,
        "top1_agreement": 0.97333,
        "relative_rms": 0.0371,
        "cosine": 0.99934,
        "max_abs": 1.25,
        "limits": Limits(min_agreement=0.9, max_relative_rms=0.15),
        "checks": (
            Check("agreement", "at least 90 %", "97.333 %", passed=True),
            Check("relative RMS", "at most 0.15", "0.0371", passed=True),
        ),
        "lint": LintResult(("skip-only residual", "positive scales"), ()),
        "fused": FusedAdds(16, 16, "graph"),
        "stages": (StageRecord("load", 0.84, 410_000_000), StageRecord("verify", 125.0, 1_250_000_000)),
        "environment": {"openvino": "2026.4.0"},
        "notes": ("the built-in photographs were used",),
        "blocks": blocks(18),
        "ranges": ranges(50),
        "logits": pairs(200),
        "checkpoint": CheckpointRef("c0" * 32, "resnet50.pth"),
        "calibration": CalibrationRef("d1" * 32, "photos", 200, "mse"),
    }
    return BuildReport(**(fields | changes))

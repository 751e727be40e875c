"""Raw results of the accuracy table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.result_files import Run

FORMAT: Literal["rescompile-accuracy-1"] = "rescompile-accuracy-1"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One engine of one checkpoint against its fp32 network, or the reason why there is none."""

    network: str
    weights: str
    contender: str
    ours: bool
    executed_by: str = ""
    calibration_images: int = 0
    images: int = 0
    top1_reference: float | None = None
    top1: float | None = None
    agreement: float | None = None
    relative_rms: float | None = None
    seconds: float | None = None
    """Calibration and quantization, images read and the fp32 graph made before."""
    peak_rss_bytes: int | None = None
    """Peak of the process that quantized."""
    skipped: str | None = None


class Accuracy(Run, frozen=True, kw_only=True):
    """One run."""

    format: Literal["rescompile-accuracy-1"] = FORMAT
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def read_accuracy(path: Path) -> Accuracy:
    """Read ``path``.

    Raises:
        msgspec.ValidationError: it is something else.
    """
    return msgspec.json.decode(path.read_bytes(), type=Accuracy)

"""The raw results of ``benchmarks.triton_agreement``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.result_files import write_result
from rescompile.measuring.origin import Origin

FORMAT: Literal["rescompile-triton-agreement-1"] = "rescompile-triton-agreement-1"


class Parted(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose class differs."""

    index: int
    expected: int
    found: int
    lead: float
    """Difference of the expected logits between the expected class and the class that was found."""
    rms: float
    """RMS of the difference of this image's logits."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Two executions of the same integers on the same images."""

    images: int
    same_class: float
    same_logits: float
    """Share of images whose logits agree within 1e-5 of the largest."""
    relative_rms: float
    parted: tuple[Parted, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor, computed by both sides from the same inputs."""

    tensor: str
    values: int
    differ: int
    largest_step: int
    """In units of the last place; 0 where nothing differs."""
    farthest_from_tie: float
    """Largest distance of a differing value from a tie, in units of the last place."""


class AgreementReport(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one run."""

    format: Literal["rescompile-triton-agreement-1"] = FORMAT
    control: str | None
    origin: Origin
    agreement: Agreement
    tensors: tuple[Difference, ...]

    def write(self, path: Path) -> None:
        """Write the document whole or not at all."""
        write_result(self, path)

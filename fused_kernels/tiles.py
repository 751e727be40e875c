"""Tile configurations: the sizes that a kernel is compiled for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from fused_kernels.errors import TuningError


@dataclass(frozen=True)
class Tile:
    """The sizes into which one kernel cuts its work.

    A program computes ``m`` x ``n`` outputs, in steps of ``k`` of the reduction; kernels without one leave ``k`` at 0.
    """

    m: int
    n: int
    k: int = 0
    warps: int = 4
    stages: int = 3
    flat: bool = False
    """One loop over taps and channel blocks instead of unrolled taps. It pipelines across taps, but Triton has
    miscompiled that form at 8 warps (pytorch #173068), so the default tiles never use it and the tuner checks it."""
    group: int = 8
    """Row tiles that share the column tiles in the L2 cache before moving on."""
    splits: int = 1
    """Parts of a wgrad reduction, each with its own rows of the workspace."""
    registers: int = 0
    """Most 32-bit registers of a thread, so that a processor holds more programs; 0 lets the compiler choose."""

    @property
    def name(self) -> str:
        """``128x64x64 4w 3s``: m x n x k, warps and stages; then ``128r`` for most registers, and ``flat``."""
        sizes = "x".join(str(size) for size in (self.m, self.n, self.k) if size)
        limit = f" {self.registers}r" if self.registers else ""
        return f"{sizes} {self.warps}w {self.stages}s{limit}{' flat' if self.flat else ''}"

    @property
    def options(self) -> dict[str, int]:
        """Triton's options for a launch or a compilation; only NVIDIA's targets know a limit of registers."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}

    def to_json(self) -> dict[str, int | bool]:
        """A plain dictionary with every field."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Tile:
        """The inverse of ``to_json``.

        Raises:
            TuningError: a field is unknown, missing or not a number.
        """
        known = {field.name for field in fields(Tile)}
        if unknown := set(data) - known:
            raise TuningError(
                f"a tile has no field {sorted(unknown)[0]!r}: its fields are {', '.join(sorted(known))}"
            )
        if not all(isinstance(value, int) for value in data.values()) or not {"m", "n"} <= set(data):
            raise TuningError(
                f"{data} is not a tile: m and n are required, and every field is a whole number"
            )
        return Tile(**data)

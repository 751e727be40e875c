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

    @property
    def name(self) -> str:
        """``128x64x64 4w 3s``: m x n x k, warps and stages; ``flat`` follows if it is."""
        sizes = "x".join(str(size) for size in (self.m, self.n, self.k) if size)
        return f"{sizes} {self.warps}w {self.stages}s{' flat' if self.flat else ''}"

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

"""Per-tile sums on their way from an epilogue to the statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Partials:
    """fp32 [kinds, tiles, C]: one row for each tile of rows, so that they add up in a fixed order."""

    rows: Tensor
    per_tile: int
    """Rows of the activation that a tile stands for; the last one stands for what is left."""
    count: int
    """Rows of the activation, N * H * W; of this process's part where ``counts`` is given."""
    counts: Tensor | None = None
    """fp32 [tiles] where the tiles differ in size, as those gathered from several processes do."""

    @property
    def tiles(self) -> int:
        """How many tiles."""
        return self.rows.shape[1]

    @property
    def channels(self) -> int:
        """C."""
        return self.rows.shape[2]

"""Bytes that the fused operators move beyond the fusedA floor in a training step, item by item."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.traffic import ours
from benchmarks.traffic.footprint import STATISTICS, WORKSPACE
from benchmarks.traffic.tables import Table
from fused_kernels.ops.convolution import makes_dy


@dataclass(frozen=True)
class Difference:
    """One reason; ``bytes`` may be negative."""

    name: str
    bytes: int
    reason: str


def differences(table: Table) -> list[Difference]:
    """Every reason, the weightiest first; they add up to ours - floor of the whole network."""
    network, n, e = table.network, table.batch, table.dtype.itemsize
    blocks = table.blocks.ours
    layers = [layer for block in network.blocks for layer in block.layers]
    outputs = n * sum(block.main[-1].y for block in network.blocks)
    found = [
        Difference(
            "masks",
            e * outputs - outputs // 4,
            "the sign of a block's ReLU is read from z, in its own dtype; the floor writes and reads one bit",
        ),
        Difference("stem", _over(table, "stem"), _STEM),
        Difference(
            "split-K workspaces",
            blocks[WORKSPACE],
            "fp32 parts of dw, written and then added up in a fixed order, so that the same input gives the same bits;"
            " counted without the L2 cache, which holds them",
        ),
        Difference(
            "statistics",
            blocks[STATISTICS],
            "a row of partial sums for each tile instead of atomic additions: written by epilogues, read by `finalize`"
            " and `sums`",
        ),
        Difference(
            "dy on the way",
            -n * e * sum(layer.y for layer in layers if makes_dy(layer.conv, layer.c, table.dtype)),
            "wgrad of a 1x1 makes and writes dy itself, so it does not read it",
        ),
        Difference(
            "casts",
            blocks[ours.TORCH],
            "PyTorch casts the fp32 weights, once, and keeps them for the backward pass",
        ),
        Difference(
            "head", _over(table, "head"), "plain PyTorch, which writes the pool's gradient at full size"
        ),
        Difference(
            "update", _over(table, "update"), "the floor's optimizer writes the weights in 16 bits as well"
        ),
    ]
    rest = table.total.ours.total() - table.total.floor.total() - sum(item.bytes for item in found)
    found.append(
        Difference(
            "rest", rest, "the vectors of the batch norms, and dz where the last block's `entry` reads it"
        )
    )
    return sorted(found, key=lambda item: -item.bytes)


_STEM = (
    "the image is repacked to four channels, every window of the pool also stores the place of its maximum, one byte,"
    " and the sums of the pool's backward pass come in short tiles"
)


def _over(table: Table, name: str) -> int:
    row = table.row(name)
    return row.ours.total() - row.floor.total()

"""One row per compilation, with whatever is wrong with it: as text, JSON and Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compiled_kernels.compiled import Compiled
from benchmarks.compiled_kernels.expected import EXPECTED, TENSOR_MEMORY_COLUMNS
from benchmarks.compiled_kernels.units import Unit
from fused_kernels.gpus import Target
from fused_kernels.tiles import Tile

_PRODUCT_ROWS = {
    "chain.chain_kernel": "BLOCK_M",
    "conv.conv_kernel": "BLOCK_M",
    "stem.conv_pool_kernel": "BLOCK_M",
    "stem.stem_wgrad_kernel": "BLOCK_C",
    "wgrad.wgrad_kernel": "BLOCK_C",
}
"""Kernels that multiply matrices, and the constant that says how many rows a program's product has."""
WGMMA_ROWS = 64
"""Rows that Hopper's and Blackwell's own tensor-core instructions take; with fewer, Triton uses those of Ampere."""


@dataclass(frozen=True)
class Row:
    """One compilation and its verdict."""

    unit: Unit
    target: Target
    compiled: Compiled

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong with it; empty if the kernel is good."""
        compiled, limit = self.compiled, self.target.shared_limit
        if compiled.error is not None:
            return [compiled.error]
        found = []
        most = EXPECTED[self.target.name].most_spilled
        if most is not None and compiled.machine.spilled_bytes > most:
            found.append(f"{compiled.machine.spilled_bytes} bytes of registers spilled, more than {most}")
        if compiled.shared > limit:
            found.append(f"{compiled.shared} bytes of shared memory, {limit} exist")
        if compiled.tensor_memory > TENSOR_MEMORY_COLUMNS:
            found.append(f"{compiled.tensor_memory} columns of tensor memory, {TENSOR_MEMORY_COLUMNS} exist")
        expected = expected_instructions(self.unit, self.target)
        if expected and not expected & compiled.machine.tensor_core.keys():
            found.append(f"no {' or '.join(sorted(expected))} instruction")
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        compiled, unit = self.compiled, self.unit
        return {
            "target": self.target.name,
            "kernel": unit.kernel,
            "operation": unit.entry,
            "dtype": unit.dtype,
            "tile": unit.tile.to_json(),
            "registers": compiled.registers,
            "spills": compiled.machine.spills,
            "spilled_bytes": compiled.machine.spilled_bytes,
            "shared": compiled.shared,
            "tensor_core": compiled.machine.tensor_core,
            "expects_tensor_core": sorted(expected_instructions(unit, self.target)),
            "async_copies": compiled.machine.async_copies,
            "seconds": compiled.seconds,
            "problems": self.problems,
        }

    def cells(self) -> list[str]:
        """The columns of ``HEADER``."""
        return cells_of(self.to_json())


HEADER = (
    "target",
    "kernel",
    "operation",
    "dtype",
    "tile",
    "registers",
    "spills",
    "shared KB",
    "tensor core",
    "16-byte copies",
    "verdict",
)
RIGHT = {"registers", "spills", "shared KB", "16-byte copies"}
"""Columns of figures."""


def cells_of(kernel: Mapping[str, Any]) -> list[str]:
    """The columns of ``HEADER`` from the JSON of a row."""
    instructions = sorted(kernel["tensor_core"].items())
    return [
        kernel["target"],
        kernel["kernel"].split(".")[1].removesuffix("_kernel"),
        kernel["operation"],
        kernel["dtype"],
        Tile.from_json(kernel["tile"]).name,
        str(kernel["registers"]),
        str(kernel["spills"]),
        f"{kernel['shared'] / 1024:.1f}",
        " ".join(f"{count} {name}" for name, count in instructions) or "-",
        str(kernel["async_copies"]),
        "; ".join(kernel["problems"]) or "ok",
    ]


def expected_instructions(unit: Unit, target: Target) -> frozenset[str]:
    """Tensor-core instructions, one kind of which must be there; empty if the kernel multiplies no matrices."""
    if unit.kernel not in _PRODUCT_ROWS or unit.dtype == "float32":
        return frozenset()
    expected = EXPECTED[target.name]
    own = expected.int8_instructions if unit.dtype == "int8" else expected.float_instructions
    few_rows = unit.variant.constant(_PRODUCT_ROWS[unit.kernel]) < WGMMA_ROWS
    if few_rows or unit.dtype == "tf32":
        # TF32 operands must lie along the reduction for the newer instructions, which a gradient's do not
        return own | {"IMMA" if unit.dtype == "int8" else "HMMA"}
    return own


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Sort by target, kernel, dtype, operation and tile."""
    return sorted(
        rows,
        key=lambda row: (
            row.target.capability,
            row.unit.kernel,
            row.unit.dtype,
            row.unit.entry,
            row.unit.tile.name,
        ),
    )


def as_text(rows: Sequence[Row]) -> str:
    """An aligned table."""
    return aligned([HEADER, *(row.cells() for row in rows)], RIGHT)


def as_markdown(rows: Sequence[Row], triton_version: str, command: str) -> str:
    """A page with one table for each target."""
    parts = [
        "# Kernels, compiled",
        f"Written by `{command}` with Triton {triton_version}, without a GPU. A tile is m x n x k of the"
        " matrix product, warps and pipeline stages. Tensor-core instructions and 16-byte asynchronous copies are"
        " counted in the machine code; registers are 32-bit ones per thread.",
    ]
    for target in dict.fromkeys(row.target for row in rows):
        mine = [row for row in rows if row.target == target]
        parts.append(f"## {target.name} ({EXPECTED[target.name].example})\n\n{summary(mine)}")
        parts.append(markdown(HEADER[1:], RIGHT, (row.cells()[1:] for row in mine)))
    return "\n\n".join(parts) + "\n"


def aligned(lines: Sequence[Sequence[str]], right: Collection[str]) -> str:
    """Columns for a terminal, the header first; those named in ``right`` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(lines[0], line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown(header: Sequence[str], right: Collection[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; columns named in ``right`` are aligned to the right."""
    lines = [header, ["---:" if name in right else "---" for name in header], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(rows: Sequence[Row]) -> str:
    """One sentence about rows of one target."""
    target = rows[0].target
    failed = sum(bool(row.problems) for row in rows)
    spilled = sum(bool(row.compiled.machine.spills) for row in rows)
    return (
        f"{target.name}: {len(rows)} compiled, {failed} wrong, {spilled} with spills;"
        f" at most {max(row.compiled.registers for row in rows)} registers"
        f" and {max(row.compiled.shared for row in rows) / 1024:.0f} of {target.shared_limit / 1024:.0f} KB of shared"
        " memory."
    )

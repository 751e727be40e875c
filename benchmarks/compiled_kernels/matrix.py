"""One page from reports of several targets and releases: ``python -m benchmarks.compiled_kernels.matrix REPORT...``.

``python -m benchmarks.compiled_kernels --json`` writes a report; ``scripts/compile-with-newest-triton.sh`` makes all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.compiled_kernels.expected import EXPECTED
from benchmarks.compiled_kernels.report import HEADER, RIGHT, aligned, cells_of, markdown
from fused_kernels.gpus import TARGETS, Target
from fused_kernels.tiles import Tile

Kernel = dict[str, Any]
"""One compilation, as in ``report.Row.to_json``."""
DETAILED = "sm_90"
"""The target whose kernels are all listed, as compiled by the first release."""


@dataclass(frozen=True)
class Cell:
    """One target under one release."""

    target: Target
    triton: str
    kernels: list[Kernel]

    @property
    def wrong(self) -> list[Kernel]:
        """Kernels with problems."""
        return [kernel for kernel in self.kernels if kernel["problems"]]

    @property
    def spilling(self) -> list[Kernel]:
        """Kernels that store registers to memory."""
        return [kernel for kernel in self.kernels if kernel["spills"]]

    def row(self) -> list[str]:
        """The columns of ``_SUMMARY``."""
        return [
            self.target.name,
            EXPECTED[self.target.name].example,
            self.triton,
            str(len(self.kernels)),
            str(len(self.wrong)),
            str(len(self.spilling)),
            str(max((kernel["spills"] for kernel in self.kernels), default=0)),
            str(max((kernel["registers"] for kernel in self.kernels), default=0)),
            f"{max((kernel['shared'] for kernel in self.kernels), default=0) / 1024:.0f}",
            f"{self.target.shared_limit / 1024:.0f}",
        ]


_SUMMARY = (
    "target", "GPU", "Triton", "compiled", "wrong", "with spills", "most spills", "registers", "shared KB", "of KB",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Print the summary; 1 if a kernel is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled_kernels.matrix", description=__doc__)
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT", help="from benchmarks.compiled_kernels --json"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the page here, as Markdown")
    asked = parser.parse_args(arguments)
    cells = cells_from(asked.reports)
    print(as_text(cells))
    if asked.output is not None:
        asked.output.write_text(as_page(cells), "utf-8")
    raise SystemExit(1 if any(cell.wrong for cell in cells) else 0)


def cells_from(reports: Iterable[Path]) -> list[Cell]:
    """One cell per target and release, in the order of their numbers."""
    found: dict[tuple[str, str], list[Kernel]] = {}
    for path in reports:
        body = json.loads(path.read_text("utf-8"))
        for kernel in body["kernels"]:
            found.setdefault((kernel["target"], body["triton"]), []).append(kernel)
    cells = [Cell(TARGETS[target], triton, kernels) for (target, triton), kernels in found.items()]
    return sorted(cells, key=lambda cell: (cell.target.capability, _number(cell.triton)))


def as_text(cells: Sequence[Cell]) -> str:
    """The summary for a terminal, and every kernel that is wrong."""
    text = [aligned([_SUMMARY, *(cell.row() for cell in cells)], _SUMMARY)]
    for cell in cells:
        text += [
            f"{cell.target.name}, Triton {cell.triton}: {kernel['operation']} {kernel['dtype']}"
            f" {Tile.from_json(kernel['tile']).name}: {'; '.join(kernel['problems'])}"
            for kernel in cell.wrong
        ]
    return "\n".join(text)


def as_page(cells: Sequence[Cell]) -> str:
    """docs/kernels-compiled.md."""
    parts = [_INTRODUCTION, markdown(_SUMMARY, set(_SUMMARY[3:]), (cell.row() for cell in cells))]
    if any(cell.spilling for cell in cells):
        parts += ["## Spills", _SPILLS, _spills(cells)]
    detailed = next((cell for cell in cells if cell.target.name == DETAILED), None)
    if detailed is not None:
        target = detailed.target
        parts.append(
            f"## {target.name} ({EXPECTED[target.name].example}), kernel by kernel, Triton {detailed.triton}"
        )
        rows = (cells_of(kernel)[1:] for kernel in detailed.kernels)
        parts.append(markdown(HEADER[1:], RIGHT, rows))
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
# Kernels, compiled

`scripts/compile-with-newest-triton.sh` compiled the kernels without a GPU, with two Triton releases. For sm_90, for
which the tiles are chosen, it compiled every kernel in every form with its default tile; and for each kernel, prologue,
epilogue and dtype the call that passes the most arguments, with every tile that the tuner may choose (fp32: the default
one). For the other targets it compiled these calls with their default tiles, in fp32 one for each kernel.

A tile is m x n x k of the matrix product, warps and pipeline stages; `r` is a limit of registers. A kernel is wrong if
it does not compile, needs more shared memory than a program has, multiplies 16-bit or int8 matrices without the
target's tensor-core instructions (HGMMA and IGMMA on sm_90) or, on sm_90, spills more than 16 bytes of a thread's
registers. Spills and copies are counted in instructions, registers as 32-bit registers of a thread."""

_SPILLS = """\
A tile is a candidate if it fits the shared memory of the target and the registers of sm_90, for which the kernels
are tuned. On other targets some spill. The table counts the spill instructions of the worst operation.
These tiles stay candidates, because the tuner times them beside others of their size that do not spill."""


def _spills(cells: Sequence[Cell]) -> str:
    columns = [cell for cell in cells if cell.spilling]
    worst: dict[tuple[str, str, str], dict[int, int]] = {}
    for index, cell in enumerate(columns):
        for kernel in cell.spilling:
            name = kernel["kernel"].split(".")[1].removesuffix("_kernel")
            row = worst.setdefault((name, kernel["dtype"], Tile.from_json(kernel["tile"]).name), {})
            row[index] = max(row.get(index, 0), kernel["spills"])
    names = [f"{cell.target.name}, {cell.triton}" for cell in columns]
    rows = (
        [*key, *(str(row.get(i, "-")) for i in range(len(columns)))] for key, row in sorted(worst.items())
    )
    return markdown(("kernel", "dtype", "tile", *names), set(names), rows)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdecimal())


if __name__ == "__main__":
    main(sys.argv[1:])

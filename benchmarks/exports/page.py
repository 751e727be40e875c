"""``docs/exports.md`` from the stored table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from rescompile.building.fidelity import TOLERANCE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "exports.md"
TABLE = Path(__file__).with_name("table.json")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One network; the errors are relative RMS, of several outputs the largest."""

    name: str
    shape: tuple[int, int, int]
    error: float
    """Our fp32 graph against the module."""
    error_exact: float
    """Our fp32 graph against the module in float64."""
    module_error_exact: float
    """The module against itself in float64: what float32 costs."""
    blocks: tuple[str, ...]
    adds: int
    adds_fused: int
    floating: dict[str, int]
    """Number of operations that are not quantized, by reason."""
    tensors: int
    """Tensors between blocks of the OpenVINO engine that have the deployable graph's values."""
    tensorrt: str

    def fault(self) -> str | None:
        """What this network misses; None if nothing."""
        if not self.error <= TOLERANCE and not self.error_exact <= self.module_error_exact:
            return f"its graph differs from the module by {self.error:.1g}"
        return None if self.tensorrt.startswith("built") else self.tensorrt


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """All networks, and the packages that they come from."""

    versions: dict[str, str]
    of: int
    """How many networks there are to measure."""
    rows: tuple[Row, ...]


def differences(stored: Row, found: Row) -> Iterator[str]:
    """Sentences on where the structure and placement of ``found`` differ from the ``stored`` row."""
    for field in ("blocks", "adds", "adds_fused", "floating"):
        before, after = getattr(stored, field), getattr(found, field)
        if before != after:
            yield f"{stored.name}: {field} were {before} and are {after}"


_HEADER = """# Exported networks

Made by `python -m benchmarks.exports --write` (torchvision, timm, and the extra `tensorrt-rtx`); do not edit it.

{count} of {of} networks of torchvision and timm with random weights, exported by `torch.onnx.export` and built as INT8
for OpenVINO and for TensorRT for RTX (which builds for {target} without a GPU and is not executed here). Without
`--write` the command compares blocks, fused additions and what stays in floating point with the stored
[table](../benchmarks/exports/table.json), and fails where they differ.

*fp32* is the [relative RMS](glossary.md#relative-rms) of our graph against the module, on {images} images; at most
{tolerance:g} is asked. *float64* compares both with the module in float64: first our graph, then PyTorch's own float32.
Where rounding alone takes more than {tolerance:g}, our graph has to be at least as close to float64 as the module is.
*Adds* are the residual additions that fuse into a convolution, *tensors* those between blocks that were compared in
the OpenVINO engine, each block fed with the deployable graph's values.

| network | image | fp32 | float64: ours, module | blocks | adds | tensors | TensorRT for RTX | in floating point |
|---|---|---|---|---|---|---|---|---|
"""


def page(found: Table, *, images: int, target: str) -> str:
    """The page's text."""
    header = _HEADER.format(
        count=len(found.rows), of=found.of, images=images, target=target, tolerance=TOLERANCE
    )
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return header + "".join(f"{_line(row)}\n" for row in found.rows) + f"\nMade with {versions}.\n"


def _line(row: Row) -> str:
    floating = ", ".join(f"{number} x {reason}" for reason, number in row.floating.items())
    cells = (
        row.name,
        "x".join(map(str, row.shape)),
        f"{row.error:.1e}",
        f"{row.error_exact:.1e}, {row.module_error_exact:.1e}",
        str(len(row.blocks)),
        f"{row.adds_fused} of {row.adds}",
        str(row.tensors),
        row.tensorrt.replace("|", "/"),
        floating or "nothing",
    )
    return f"| {' | '.join(cells)} |"

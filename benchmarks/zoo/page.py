"""``docs/zoo.md`` from raw results."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.result_files import Run, raw_results

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One file; accuracies are between 0 and 1."""

    name: str
    measured: float | None = None
    """Accuracy by its author's program, on ``measured_on`` images."""
    measured_on: int = 2000
    own_tool: str | None = None
    own_top1: float | None = None
    """Accuracy by its own tool, on all images."""
    fp32_first: float | None = None
    """Our accuracy on the first 2,000 images."""
    fp32: float | None = None
    int8: float | None = None
    agreement: float | None = None
    relative_rms: float | None = None
    said: str | None = None
    """The refusal, or why the verdict failed."""
    network: str | None = None
    """Our name for it."""


FORMAT = "rescompile-zoo-1"


class Zoo(Run, frozen=True, kw_only=True):
    """One run."""

    format: str = FORMAT
    calibration_images: int
    validation_images: int
    versions: dict[str, str]
    rows: tuple[Row, ...]


_HEADER = """# Networks saved by other tools

Made by `python -m benchmarks.zoo` (with `RESCOMPILE_DATA`, and `TENSORFLOW_PYTHON` for TensorFlow's column and
converter); do not edit it.

Each row is one published file, built with the preprocessing of its training program as the only help: the form of
the network comes from its weights or its graph. *Author* is the accuracy in the program that trained it, on the
first 2,000 test images of CIFAR-10 (or all of them, where marked); *own tool* is the accuracy in the usual tool for
such files, on all of them. The other columns are ours, executed by OpenVINO: fp32 on the first 2,000 and on all
{validation:,} images, INT8 calibrated on {calibration} training images,
[*agreement*](glossary.md#agreement) with fp32 and [*relative RMS*](glossary.md#relative-rms) of the logits.

| file | network | author | own tool | fp32, first 2,000 | fp32 | INT8 | agreement | relative RMS |
|---|---|---|---|---|---|---|---|---|
"""


def page(found: Zoo, path: Path) -> str:
    """The page, from one document and the file that it lies in."""
    header = _HEADER.format(validation=found.validation_images, calibration=found.calibration_images)
    remarks = [f"- `{row.name}`: {row.said}" for row in found.rows if row.said]
    return "\n".join(
        [
            header + "\n".join(map(_line, found.rows)),
            "",
            *([*remarks, ""] if remarks else []),
            f"{found.measured_on(found.versions)} ({raw_results(path, PAGE)}).",
            "",
        ]
    )


def _line(row: Row) -> str:
    on_all = " (all)" if row.measured is not None and row.measured_on != 2000 else ""
    own = "" if row.own_top1 is None else f"{_percent(row.own_top1)} ({row.own_tool})"
    rms = "" if row.relative_rms is None else f"{row.relative_rms:.4f}"
    cells = [
        f"`{row.name}`", row.network or "", _percent(row.measured) + on_all, own, _percent(row.fp32_first),
        _percent(row.fp32), _percent(row.int8), _percent(row.agreement), rms,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"

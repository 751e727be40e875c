"""The work behind ``rescompile table``: calibration tables to and from other tools' files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from calibration.exchange import Format, format_of, write_onnxruntime_table, write_tensorrt_cache
from calibration.imported import import_table as table_from
from calibration.imported import read_foreign
from calibration.names import text_of
from calibration.table import read_table
from calibration.tensorrt_cache import HEADER
from rescompile.building.source import open_source
from rescompile.config import ModelConfig
from rescompile.errors import OutputError, UsageError
from rescompile.files import sha256_of
from rescompile.graph.shared.topology import quantized_tensors
from rescompile.progress import Progress, StageClock

_SHOWN = 8  # names in a line


class Exported(msgspec.Struct, frozen=True):
    """A file that was written for another tool."""

    file: str
    format: Format
    method: str
    """Method of the thresholds in use, which are the ones that were written."""
    tensors: int
    sha256: str
    """Of the file."""

    def lines(self) -> list[str]:
        """What the terminal shows."""
        return [f"{self.file}: {self.tensors} scales by {self.method} for {self.format}"]


class ImportedFile(msgspec.Struct, frozen=True):
    """A table that was made from another tool's file."""

    table: str
    model: str
    method: str
    tensors: int
    source: str
    """Name of the other tool's file."""
    source_sha256: str
    rounded_up: tuple[str, ...]
    """Tensors whose scale was no FP16 number."""
    unused: tuple[str, ...]
    """Tensors of the file that the network does not quantize."""

    def lines(self) -> list[str]:
        """What the terminal shows."""
        return [
            f"{self.table}: {self.tensors} scales for {self.model} from {self.source} ({self.source_sha256[:12]}…)",
            f"rounded up to the next FP16 number: {_counted(self.rounded_up)}",
            f"in the file, but not quantized here: {_counted(self.unused)}",
        ]


def export_table(
    table: Path, file_format: Format, output: Path, *, header: str | None = None, force: bool = False
) -> Exported:
    """Write the scales of a calibration table as another tool's file.

    Raises:
        UsageError: a header for a format that has none.
        OutputError: ``output`` exists (without ``force``), or there is no folder for it.
        TableError: the table is damaged or belongs to an equalized network, or the header is none.
    """
    if header is not None and file_format != "tensorrt":
        raise UsageError(f"--header belongs to TensorRT's cache; leave it out with --format {file_format}")
    _check_output(output, force=force)
    content = read_table(table)
    if file_format == "tensorrt":
        write_tensorrt_cache(content, output, version_header=HEADER if header is None else header)
    else:
        write_onnxruntime_table(content, output)
    return Exported(
        file=text_of(output),
        format=file_format,
        method=content.method,
        tensors=len(content.tensors),
        sha256=sha256_of(output),
    )


def import_table(
    model: ModelConfig,
    file: Path,
    file_format: Format | Literal["auto"],
    output: Path,
    *,
    force: bool = False,
    progress: Progress,
) -> ImportedFile:
    """Write a calibration table of the network with the scales of another tool's file.

    Raises:
        OutputError: ``output`` exists (without ``force``), or there is no folder for it.
        TableError: the file is damaged, lacks a tensor of the network, or has a scale that cannot be.
        UsageError, CheckpointError, DownloadError, GraphError: the network cannot be loaded.
    """
    _check_output(output, force=force)
    foreign = read_foreign(file, format_of(file) if file_format == "auto" else file_format)
    with StageClock(progress).stage("load"):
        source = open_source(model, progress)
    made = table_from(
        foreign,
        model=source.name,
        checkpoint_sha256=source.checkpoint.sha256,
        preprocess=source.preprocess,
        tensors=quantized_tensors(source.graph),
    )
    made.table.write(output)
    return ImportedFile(
        table=text_of(output),
        model=source.name,
        method=made.table.method,
        tensors=len(made.table.tensors),
        source=text_of(file.name),
        source_sha256=foreign.sha256,
        rounded_up=made.rounded_up,
        unused=made.unused,
    )


def _check_output(output: Path, *, force: bool) -> None:
    """Refuse an output that cannot be written before any work."""
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output.parent} is no folder; make it, or choose another --output")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; choose a file as --output")
    if os.path.lexists(output) and not force:
        raise OutputError(f"{output} exists already; pass --force to replace it, or another --output")


def _counted(names: tuple[str, ...]) -> str:
    listed = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names)} ({listed})" if names else "none"

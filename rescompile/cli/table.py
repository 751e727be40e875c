"""``rescompile table``: calibration tables to and from other tools' files. Commands; no work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rescompile.cli.option_groups import takes_groups
from rescompile.cli.options import Json, NetworkOptions, PreprocessingOptions, model_config

if TYPE_CHECKING:
    from rescompile.building.exchange import Exported, ImportedFile

app = typer.Typer(
    help="Exchange calibration tables with TensorRT and ONNX Runtime.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]


@app.command("export")
def export(
    table: Annotated[Path, typer.Argument(help="A calibration.json.", metavar="TABLE.json")],
    file_format: Annotated[
        Literal["tensorrt", "onnxruntime"], typer.Option("--format", help="Whose file to write.")
    ],
    output: Annotated[
        Path,
        typer.Option(help="File to write; for onnxruntime its ending is .json, .cache or .flatbuffers."),
    ],
    header: Annotated[
        str | None,
        typer.Option(
            help="First line of TensorRT's cache; TensorRT compares it: TRT-8601-MinMaxCalibration."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the scales of a calibration table for another tool.

    Examples:

    - `rescompile table export calibration.json --format tensorrt --output int8.cache`

    - `rescompile table export calibration.json --format onnxruntime --output ranges.json`
    """
    from rescompile.building.exchange import export_table

    _print(export_table(table, file_format, output, header=header, force=force), json=json)


@app.command("import")
@takes_groups
def import_(
    file: Annotated[
        Path, typer.Argument(help="TensorRT's calibration cache or ONNX Runtime's table.", metavar="FILE")
    ],
    network: NetworkOptions,
    preprocessing: PreprocessingOptions,
    file_format: Annotated[
        Literal["tensorrt", "onnxruntime", "auto"],
        typer.Option("--format", help="Whose file it is; auto tells by how it begins."),
    ] = "auto",
    output: Annotated[Path, typer.Option(help="Calibration table to write.")] = Path("calibration.json"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a calibration table for a network from another tool's scales.

    Examples:

    - `rescompile table import int8.cache --depth 50 --weights my.pth --output calibration.json`

    - `rescompile build --depth 50 --weights my.pth --calibration calibration.json`
    """
    from rescompile.building.exchange import import_table
    from rescompile.presenting.terminal.report import TerminalProgress

    config = model_config(network, preprocessing)
    with TerminalProgress() as progress:
        made = import_table(config, file, file_format, output, force=force, progress=progress)
    _print(made, json=json)


def _print(made: Exported | ImportedFile, *, json: bool) -> None:
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n")
    else:
        print(*made.lines(), sep="\n")

"""Commands and exit codes; no work. 0: done and passed, 1: failed or user error, 2: usage."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rescompile.cli_measure import bench, profile, report
from rescompile.cli_serving import export_server
from rescompile.cli_table import app as table_app
from rescompile.errors import USER_ERRORS
from rescompile.option_groups import takes_groups
from rescompile.options import (
    CalibrationOptions,
    Directory,
    EngineOptions,
    Json,
    NetworkOptions,
    PreprocessingOptions,
    VerdictOptions,
    model_config,
)

if TYPE_CHECKING:
    from rescompile.report import BuildReport

_STOPPED: dict[object, str] = {130: "interrupted", 143: "terminated"}
"""Exit codes after SIGINT and SIGTERM."""
_OUTPUT_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EPIPE}

app = typer.Typer(
    name="rescompile",
    help="Takes a ResNet checkpoint to the fastest engine that still gives the right answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(table_app, name="table")
app.command()(bench)
app.command()(profile)
app.command()(report)
app.command("export-server")(export_server)


def main() -> NoReturn:
    """Run the command line; errors that a user can mend become one sentence on stderr."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except USER_ERRORS as error:
        _fail(str(error), getattr(error, "exit_code", 1))
    except SystemExit as stop:
        if stop.code in _STOPPED:
            _fail(f"{_STOPPED[stop.code]}; no unfinished result is left", stop.code)
        raise
    except OSError as error:
        if error.errno not in _OUTPUT_REFUSED:
            raise
        # whatever is still in the buffer would be tried again, and fail, when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"the output cannot be written ({error.strerror}); send it to another place", 1)
    raise SystemExit(0)


def _fail(sentence: str, code: str | int | None) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(code) from None


def _print_version(asked: bool) -> None:
    if asked:
        from rescompile.version import VERSION

        typer.echo(f"rescompile {VERSION}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _print_verdict(report: BuildReport, *, json: bool) -> NoReturn:
    """Print the report and end with the exit code that it means."""
    from rescompile.terminal import print_summary

    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_summary(report)
    raise typer.Exit(0 if report else 1)


@app.command()
@takes_groups
def build(
    network: NetworkOptions,
    engine: EngineOptions,
    calibration_options: CalibrationOptions,
    verdict: VerdictOptions,
    preprocessing: PreprocessingOptions,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="A calibration.json made earlier, instead of images.", rich_help_panel="Calibration"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build an engine from a checkpoint and decide whether it may ship.

    Examples:

    - `rescompile build --depth 101 --precision int8`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --validation-set val/ --max-top1-drop 0.3`

    - `rescompile build --model resnet56-cifar --weights resnet56.th --calibration-set train.npz`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --fp16-blocks stem,layer4.2`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --full-range`

    - `rescompile build --onnx mine.onnx --precision fp16 --backend tensorrt-rtx --target sm_89 --batch 1:8:32`

    - `rescompile build --depth 50 --weights my.pth --backend triton --target sm_90 --batch 8`
    """
    from rescompile.config import BuildConfig, parse_batch, parse_fp16_blocks
    from rescompile.pipeline import build as run
    from rescompile.terminal import TerminalProgress

    config = BuildConfig(
        model=model_config(network, preprocessing),
        precision=engine.precision,
        fp16_blocks=parse_fp16_blocks(engine.fp16_blocks),
        calibration=calibration_options.config(table=calibration, seed=network.seed),
        validation_set=verdict.validation_set,
        validation_images=verdict.validation_images,
        limits=verdict.limits(),
        backend=engine.backend,
        target=engine.target,
        batch=parse_batch(engine.batch),
        input_format=engine.input_format,
        output=engine.output,
        force=engine.force,
        keep_reference=not engine.no_reference,
    )
    with TerminalProgress() as progress:
        report = run(config, progress)
    _print_verdict(report, json=json)


@app.command()
@takes_groups
def calibrate(
    network: NetworkOptions,
    calibration_options: CalibrationOptions,
    preprocessing: PreprocessingOptions,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("calibration.json"),
    compare: Annotated[
        bool, typer.Option("--compare", help="Print what every method would cost, tensor by tensor.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the comparison of the methods into this .svg or .png.")
    ] = None,
    json: Json = False,
) -> None:
    """Choose INT8 scales for a network and write them, with their origin, into a calibration table.

    Examples:

    - `rescompile calibrate --depth 50 --weights my.pth --calibration-set photos/ --output my.json`

    - `rescompile calibrate --depth 50 --weights my.pth --calibration-set photos/ --compare --plot methods.svg`

    - `rescompile build --depth 50 --weights my.pth --calibration my.json`
    """
    from rescompile.commands import calibrate as run
    from rescompile.plot_compare import check_plot_path
    from rescompile.terminal import TerminalProgress
    from rescompile.views import print_calibrated

    if plot is not None:
        check_plot_path(plot)
    with TerminalProgress() as progress:
        calibrated = run(
            model_config(network, preprocessing),
            calibration_options.config(seed=network.seed),
            output,
            progress,
        )
    if plot is not None and calibrated.comparison is not None:
        from rescompile.plot_methods import write_plot

        write_plot(calibrated.comparison, plot)
    print_calibrated(calibrated, output, compare=compare, json=json)


@app.command()
@takes_groups
def sensitivity(
    network: NetworkOptions,
    calibration_options: CalibrationOptions,
    preprocessing: PreprocessingOptions,
    images: Annotated[int, typer.Option(min=1, help="Most calibration images to measure on.")] = 32,
    plot: Annotated[Path | None, typer.Option(help="Draw damage by block into this .svg or .png.")] = None,
    json: Json = False,
) -> None:
    """Rank the blocks of a network by what their INT8 quantization does to the logits.

    Examples:

    - `rescompile sensitivity --depth 50 --weights my.pth --calibration-set photos/ --plot damage.svg`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --fp16-blocks stem,layer3.0`
    """
    from rescompile.commands import sensitivity as run
    from rescompile.plot_compare import check_plot_path
    from rescompile.plot_damage import write_plot
    from rescompile.terminal import TerminalProgress
    from rescompile.views_sensitivity import print_sensitivity

    if plot is not None:
        check_plot_path(plot)
    with TerminalProgress() as progress:
        report = run(
            model_config(network, preprocessing),
            calibration_options.config(seed=network.seed),
            progress,
            count=images,
        )
    if plot is not None:
        write_plot(report.blocks, plot)
    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_sensitivity(report)


@app.command()
@takes_groups
def verify(
    directory: Directory,
    verdict: VerdictOptions,
    reference: Annotated[
        Path | None, typer.Option(help="fp32 ONNX graph, for an engine that was built with --no-reference.")
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave damaged images out instead of stopping.")
    ] = False,
    json: Json = False,
) -> None:
    """Judge an engine again: asked beside measured, exit 0 if it passes and 1 if not.

    Example:

    - `rescompile verify resnet50-int8-openvino --validation-set val/ --min-agreement 0.97 --max-top1-drop 0.3`
    """
    from rescompile.commands import verify as run
    from rescompile.terminal import TerminalProgress

    with TerminalProgress() as progress:
        report = run(
            directory,
            validation_set=verdict.validation_set,
            validation_images=verdict.validation_images,
            limits=verdict.limits(),
            reference=reference,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
    _print_verdict(report, json=json)


@app.command()
def run(
    directory: Directory,
    photos: Annotated[list[Path], typer.Argument(help="Image files.", metavar="PHOTO...")],
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each photo.")] = 5,
    json: Json = False,
) -> None:
    """Classify photographs with an engine.

    Example:

    - `rescompile run resnet50-int8-openvino photo.jpg`
    """
    from rescompile.commands import classify
    from rescompile.views import print_classes

    answers = classify(directory, photos, top=top)
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(answers).decode() + "\n")
    else:
        print_classes(answers)


@app.command()
def inspect(directory: Directory, json: Json = False) -> None:
    """Show what is inside an engine directory, and whether its files are what they were.

    Example:

    - `rescompile inspect resnet50-int8-openvino`
    """
    from rescompile.commands import inspect as run
    from rescompile.views import print_inspection

    inspection = run(directory)
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(inspection), indent=2).decode() + "\n")
    else:
        print_inspection(inspection)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what this machine can build and run, and which extra is missing for what.

    Example:

    - `rescompile doctor`
    """
    from rescompile.environment import diagnose
    from rescompile.views import print_findings

    findings = diagnose()
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode() + "\n")
    else:
        print_findings(findings)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="DIR, DIR:fp32, DIR:graph, DIR:engine or FILE.onnx.", metavar="A")],
    b: Annotated[
        str | None,
        typer.Argument(
            help="The same for the other side; without it A is a DIR, whose three parts are compared.",
            metavar="[B]",
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="A folder of images or .npz; no labels needed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most images to run.")] = 16,
    part_db: Annotated[
        float, typer.Option(help="Two sides part at the first block whose SQNR is below this many dB.")
    ] = 20.0,
    plot: Annotated[Path | None, typer.Option(help="Draw SQNR by block into this .svg or .png.")] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave damaged images out instead of stopping.")
    ] = False,
    json: Json = False,
) -> None:
    """Line up any two of fp32 reference, deployable graph and engine by block, and say where they part.

    Examples:

    - `rescompile compare resnet50-int8-openvino --images val/`

    - `rescompile compare resnet50-int8-openvino resnet50-fp16-openvino --images val/ --plot sqnr.svg`

    - `rescompile compare resnet50-int8-openvino:fp32 other/model.onnx --images val/ --part-db 15`
    """
    from rescompile.compare import compare as run
    from rescompile.plot_compare import check_plot_path, write_plot
    from rescompile.terminal import TerminalProgress
    from rescompile.views_compare import print_comparison

    if plot is not None:
        check_plot_path(plot)
    with TerminalProgress() as progress:
        report = run(
            a,
            b,
            images=images,
            limit=limit,
            part_db=part_db,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )
    if plot is not None:
        write_plot(report, plot)
    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_comparison(report)

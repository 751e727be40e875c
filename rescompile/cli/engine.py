"""The commands that take an engine directory: verify, run, inspect, compare."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from rescompile.cli.option_groups import takes_groups
from rescompile.cli.options import Directory, Json, SkipUnreadable, TrustedKeys, VerdictOptions, parse_size
from rescompile.cli.output import end_with_verdict, show


@takes_groups
def verify(
    directory: Directory,
    verdict: VerdictOptions,
    reference: Annotated[
        Path | None, typer.Option(help="fp32 ONNX graph, for an engine that was built with --no-reference.")
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    trusted_key: TrustedKeys = None,
    json: Json = False,
) -> None:
    """Check an engine against accuracy limits again; exit 0 if it passes, 3 if not.

    Example:

    - `rescompile verify resnet50-int8-openvino --validation-set val/ --min-agreement 0.97 --max-top1-drop 0.3`

    - `rescompile verify resnet50-int8-openvino --validation-set val/ --min-speedup 1.5`

    - `rescompile verify resnet50-int8-openvino --validation-set val/ --validate all`
    """
    from rescompile.accuracy.verify import verify as run
    from rescompile.presenting.terminal.report import TerminalProgress

    with TerminalProgress() as progress:
        report = run(
            directory,
            validation_set=verdict.validation_set,
            validation_images=verdict.validation_images,
            validate=verdict.validate,
            limits=verdict.limits(),
            reference=reference,
            skip_unreadable=skip_unreadable,
            progress=progress,
            trusted_keys=trusted_key or (),
        )
    end_with_verdict(report, json=json)


def run(
    directory: Directory,
    photos: Annotated[
        list[Path], typer.Argument(help="Image files, or folders of them.", metavar="PHOTO...")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to print for each photo.")] = 5,
    size: Annotated[
        str | None,
        typer.Option(
            help="Side N or size HxW at which to look at the photos, for an engine that was built with --dynamic-size."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write into this .csv or .jsonl (one line of JSON a photo) instead."
        ),
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    trusted_key: TrustedKeys = None,
    json: Json = False,
) -> None:
    """Classify photographs with an engine.

    Examples:

    - `rescompile run resnet50-int8-openvino photo.jpg`

    - `rescompile run resnet50-int8-openvino photos/ --top 1 -o classes.csv`

    - `rescompile run resnet50-int8-openvino photos/ --skip-unreadable --json`

    - `rescompile run resnet50-int8-openvino photo.jpg --size 320x256`
    """
    from calibration.errors import ImageSetError
    from calibration.images.listing import image_files
    from rescompile.presenting.terminal.views import print_classes
    from rescompile.runtime.classify import check_predictions_file, classify, write_predictions

    if output is not None:
        check_predictions_file(output)
    files, left_out = image_files(photos), list[ImageSetError]()
    try:
        answers = classify(
            directory,
            files,
            top=top,
            size=parse_size(size, "--size"),
            trusted_keys=trusted_key or (),
            skip=left_out.append if skip_unreadable and len(files) > 1 else None,
        )
    except ImageSetError as error:
        if skip_unreadable or len(files) == 1:
            raise
        raise ImageSetError(f"{error}, or --skip-unreadable to leave such images out") from None
    for reason in sorted(map(str, left_out)):
        warnings.warn(f"left out: {reason}", stacklevel=1)
    if output is not None:
        write_predictions(output, answers)
    if json or output is None:
        show(answers, print_classes, json=json)


def inspect(directory: Directory, json: Json = False) -> None:
    """Show the contents of an engine directory, and check that no file was changed.

    Example:

    - `rescompile inspect resnet50-int8-openvino`
    """
    from rescompile.presenting.terminal.views import print_inspection
    from rescompile.runtime.inspection import inspect as run

    show(run(directory), print_inspection, json=json)


def compare(
    a: Annotated[str, typer.Argument(help="DIR, DIR:fp32, DIR:graph, DIR:engine or FILE.onnx.", metavar="A")],
    b: Annotated[
        str | None,
        typer.Argument(
            help="Like A. Without B, the fp32 graph, deployable graph and engine of directory A are compared.",
            metavar="[B]",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Images to run: a folder, an .npz or one image; labels are not needed."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most this many images.")] = 16,
    part_db: Annotated[
        float, typer.Option(help="Report the first block whose SQNR is below this many dB.")
    ] = 20.0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the SQNR of each block into this .svg or .png.")
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    json: Json = False,
) -> None:
    """Compare two networks (fp32 graph, deployable graph or engine) block by block, and show where they diverge.

    Examples:

    - `rescompile compare resnet50-int8-openvino --images val/`

    - `rescompile compare resnet50-int8-openvino --images val/flipped.jpg`

    - `rescompile compare resnet50-int8-openvino resnet50-fp16-openvino --images val/ --plot sqnr.svg`

    - `rescompile compare resnet50-int8-openvino:fp32 other/model.onnx --images val/ --part-db 15`
    """
    from rescompile.accuracy.compare import compare as run
    from rescompile.presenting.plots.comparison import comparison_by_block
    from rescompile.presenting.plots.plot import check_plot_path
    from rescompile.presenting.terminal.compare import print_comparison
    from rescompile.presenting.terminal.report import TerminalProgress

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
        comparison_by_block(report).write(plot)
    show(report, print_comparison, json=json)

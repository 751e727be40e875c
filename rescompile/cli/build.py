"""The commands that begin with a checkpoint: build, calibrate, sensitivity. No work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rescompile.cli.option_groups import takes_groups
from rescompile.cli.options import (
    CalibrationOptions,
    EngineOptions,
    Json,
    NetworkOptions,
    PreprocessingOptions,
    VerdictOptions,
    model_config,
)
from rescompile.cli.verdict import end_with_verdict


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
    from rescompile.presenting.terminal.report import TerminalProgress

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
    end_with_verdict(report, json=json)


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
    from rescompile.building.calibrate import calibrate_network
    from rescompile.presenting.plots.plot import check_plot_path
    from rescompile.presenting.terminal.calibrate import print_calibrated
    from rescompile.presenting.terminal.report import TerminalProgress

    if plot is not None:
        check_plot_path(plot)
    with TerminalProgress() as progress:
        calibrated = calibrate_network(
            model_config(network, preprocessing),
            calibration_options.config(seed=network.seed),
            output,
            progress,
        )
    if plot is not None and calibrated.comparison is not None:
        from rescompile.presenting.plots.calibration_methods import methods_by_tensor

        methods_by_tensor(calibrated.comparison).write(plot)
    print_calibrated(calibrated, output, compare=compare, json=json)


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
    from rescompile.building.sensitivity import rank_blocks
    from rescompile.presenting.plots.plot import check_plot_path
    from rescompile.presenting.plots.sensitivity import sensitivity_by_block
    from rescompile.presenting.terminal.report import TerminalProgress
    from rescompile.presenting.terminal.sensitivity import print_sensitivity

    if plot is not None:
        check_plot_path(plot)
    with TerminalProgress() as progress:
        report = rank_blocks(
            model_config(network, preprocessing),
            calibration_options.config(seed=network.seed),
            progress,
            count=images,
        )
    if plot is not None:
        sensitivity_by_block(report.blocks).write(plot)
    if json:
        sys.stdout.write(report.to_json().decode())
    else:
        print_sensitivity(report)

"""The commands that begin with a checkpoint: build, calibrate, sensitivity."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
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
from rescompile.cli.output import end_with_verdict, show


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
            help="Use the scales of this calibration.json instead of images.", rich_help_panel="Calibration"
        ),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(help="Further networks of --ensemble.", metavar="[FILE]...")
    ] = None,
    json: Json = False,
) -> None:
    """Build an engine from a checkpoint and check it against your accuracy limits; exit 0 if it passes, 3 if not.

    Examples:

    - `rescompile build --depth 101 --precision int8`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --validation-set val/ --max-top1-drop 0.3`

    - `rescompile build --model resnet56-cifar --weights resnet56.th --calibration-set train.npz`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --fp16-blocks stem,layer4.2`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --full-range`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --validation-set val/ --validate all`

    - `rescompile build --onnx steering.onnx --task values --calibration-set photos/ --max-relative-rms 0.03`

    - `rescompile build --onnx mine.onnx --precision fp16 --backend tensorrt-rtx --target sm_89 --batch 1:8:32`

    - `rescompile build --model timm:resnet50d.ra2_in1k --weights my.pth --calibration-set photos/`

    - `rescompile build --depth 50 --weights my.pth --backend triton --target sm_90 --batch 8`

    - `rescompile build --weights run.ckpt --entry ema --calibration-set photos/ --validation-set val/ --min-top1 0.75`

    - `rescompile build --weights net.caffemodel --crop 224 --mean mean.binaryproto --std 0.00392157`

    - `rescompile build --weights my.pth --resize 256x256 --crop 224 --calibration-set photos/`

    - `rescompile build --ensemble resnet20.th resnet56.th --calibration-set train.npz --validation-set test.npz`

    - `rescompile build --model torchvision:resnet50 --outputs c3,c4,c5 --calibration-set photos/`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --size 256x128`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --size 224 --dynamic-size 160:320`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --validation-set val/ --min-speedup 1.5`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --cpu-form avx2 --no-thumbnails`
    """
    from calibration.file_names import text_of
    from rescompile.building.early_checks import check_build
    from rescompile.config import BuildConfig, parse_batch, parse_fp16_blocks, parse_sizes

    config = BuildConfig(
        model=replace(
            model_config(network, preprocessing, more or ()), sizes=parse_sizes(engine.dynamic_size)
        ),
        precision=engine.precision,
        fp16_blocks=parse_fp16_blocks(engine.fp16_blocks),
        task=engine.task,
        calibration=calibration_options.config(table=calibration, seed=network.seed),
        validation_set=verdict.validation_set,
        validation_images=verdict.validation_images,
        validate=verdict.validate,
        limits=verdict.limits(),
        backend=engine.backend,
        target=engine.target,
        cpu_form=engine.cpu_form,
        batch=parse_batch(engine.batch),
        input_format=engine.input_format,
        output=engine.output,
        force=engine.force,
        keep_reference=not engine.no_reference,
        thumbnails=not engine.no_thumbnails,
        command=text_of(shlex.join(["rescompile", *sys.argv[1:]])),
    )
    check_build(config)  # here too, because the import of the pipeline takes seconds

    from rescompile.pipeline import build as run
    from rescompile.presenting.terminal.report import TerminalProgress

    with TerminalProgress() as progress:
        report = run(config, progress)
    end_with_verdict(report, json=json)


@takes_groups
def calibrate(
    network: NetworkOptions,
    calibration_options: CalibrationOptions,
    preprocessing: PreprocessingOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Calibration table to write.")] = Path(
        "calibration.json"
    ),
    compare: Annotated[
        bool, typer.Option("--compare", help="Print the error of every method on every tensor.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the comparison of the methods into this .svg or .png.")
    ] = None,
    json: Json = False,
) -> None:
    """Choose the INT8 scales of a network and write them into a calibration table.

    Examples:

    - `rescompile calibrate --depth 50 --weights my.pth --calibration-set photos/ --output my.json`

    - `rescompile calibrate --depth 50 --weights my.pth --calibration-set photos/ --compare --plot methods.svg`

    - `rescompile calibrate --depth 50 --weights my.pth --calibration-set photos/ --fast-collect --output my.json`

    - `rescompile build --depth 50 --weights my.pth --calibration my.json`
    """
    from rescompile.building.early_checks import check_calibrate
    from rescompile.presenting.plots.plot import check_plot_path

    if plot is not None:
        check_plot_path(plot)
    model = model_config(network, preprocessing)
    calibration = calibration_options.config(seed=network.seed)
    check_calibrate(model, calibration, output)

    from rescompile.building.calibrate import calibrate_network
    from rescompile.presenting.plots.calibration_methods import methods_by_tensor
    from rescompile.presenting.terminal.calibrate import print_calibrated
    from rescompile.presenting.terminal.report import TerminalProgress

    with TerminalProgress() as progress:
        calibrated = calibrate_network(model, calibration, output, progress)
    if plot is not None and calibrated.comparison is not None:
        methods_by_tensor(calibrated.comparison).write(plot)
    print_calibrated(calibrated, output, compare=compare, json=json)


@takes_groups
def sensitivity(
    network: NetworkOptions,
    calibration_options: CalibrationOptions,
    preprocessing: PreprocessingOptions,
    images: Annotated[int, typer.Option(min=1, help="Measure on at most this many calibration images.")] = 32,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the damage of each block into this .svg or .png.")
    ] = None,
    json: Json = False,
) -> None:
    """Rank the blocks of a network by how much their INT8 quantization changes the logits.

    Examples:

    - `rescompile sensitivity --depth 50 --weights my.pth --calibration-set photos/ --plot damage.svg`

    - `rescompile build --depth 50 --weights my.pth --calibration-set photos/ --fp16-blocks stem,layer3.0`
    """
    from rescompile.building.early_checks import check_calibrate
    from rescompile.presenting.plots.plot import check_plot_path

    if plot is not None:
        check_plot_path(plot)
    model = model_config(network, preprocessing)
    calibration = calibration_options.config(seed=network.seed)
    check_calibrate(model, calibration)

    from rescompile.building.sensitivity import rank_blocks
    from rescompile.presenting.plots.sensitivity import sensitivity_by_block
    from rescompile.presenting.terminal.report import TerminalProgress
    from rescompile.presenting.terminal.sensitivity import print_sensitivity

    with TerminalProgress() as progress:
        report = rank_blocks(model, calibration, progress, count=images)
    if plot is not None:
        sensitivity_by_block(report.blocks).write(plot)
    show(report, print_sensitivity, json=json)

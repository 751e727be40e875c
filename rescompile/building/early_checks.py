"""Mistakes that can be seen before any weights are loaded or fetched. Quick: no torch, no onnx."""

from __future__ import annotations

from pathlib import Path

from calibration.images import open_image_set
from calibration.preprocess import CHANNELS
from calibration.table import read_table
from rescompile.backends import choose_backend
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import CheckpointError, GraphError
from rescompile.files import check_failed_directory, check_output_directory, check_output_file
from rescompile.models.registry import find, with_options
from rescompile.models.specification import ModelSpec
from rescompile.sources.class_names import read_names
from rescompile.sources.name_prefixes import has_scheme


def check_build(config: BuildConfig) -> None:
    """Refuse a build whose network, images, table or output cannot be used.

    Raises:
        RescompileError, CalibrationError: as the stage that would find the mistake.
    """
    spec = _check_network(config.model)
    _check_calibration(config.calibration)
    if config.validation_set is not None:
        needed = config.limits is not None and config.limits.need_labels
        open_image_set(config.validation_set, limit=1, need_labels=needed)
    if config.output is None and spec is None:
        return  # the output is named after the network, which its weights tell
    backend = choose_backend()[0] if config.backend == "auto" else config.backend
    output = config.output_of(spec.name if spec else "", backend)
    check_output_directory(output, force=config.force)
    # an engine that fails its limits goes there, which would be found after minutes
    check_failed_directory(output)


def check_calibrate(model: ModelConfig, calibration: CalibrationConfig, output: Path | None = None) -> None:
    """Refuse a calibration whose network, images or ``output`` file cannot be used."""
    if output is not None:
        check_output_file(output)
    _check_network(model)
    _check_calibration(calibration)


def _check_network(model: ModelConfig) -> ModelSpec | None:
    """The network, if its name alone identifies it."""
    spec = None
    for member in model.members:
        _check_network(member)
    if has_scheme(model.model):
        return None
    if model.depth is not None or model.model is not None:
        spec = with_options(
            find(depth=model.depth, name=model.model), shortcut=model.shortcut, stride_on=model.stride_on
        )
        model.preprocess.apply(spec.preprocess, channels=CHANNELS[model.preprocess.color or "RGB"])
    if model.onnx is not None and not model.onnx.exists():
        raise GraphError(f"{model.onnx} does not exist; check the path given to --onnx")
    # a word without a suffix may be a name for published weights
    if Path(model.weights).suffix and ":" not in model.weights and not Path(model.weights).exists():
        raise CheckpointError(f"{model.weights} does not exist; check the path given to --weights")
    if isinstance(model.classes, Path):
        read_names(model.classes)
    return spec


def _check_calibration(calibration: CalibrationConfig) -> None:
    if calibration.table is not None:
        read_table(calibration.table)
    if calibration.images is not None:
        open_image_set(calibration.images, limit=1)

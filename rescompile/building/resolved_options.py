"""The options of a build as they took effect, for its report: every default and every effort resolved."""

from __future__ import annotations

from rescompile.building.calibrate import Calibrated
from rescompile.building.engine_directory import Contents
from rescompile.config import DEFAULT_EFFORT, CalibrationConfig

_WORDS = {True: "yes", False: "no"}


def resolved_options(contents: Contents, calibrated: Calibrated | None) -> dict[str, str]:
    """Option to value, in the words of the command line."""
    config, source = contents.config, contents.source
    found = {
        "precision": config.precision,
        "backend": contents.backend.name,
        "target": contents.payload.target or "this machine",
        "batch": str(config.batch),
        "input": config.input_format,
        "preprocessing": str(source.preprocess),
    }
    if calibrated is not None:
        found |= _calibration(config.calibration, calibrated)
        found["FP16 blocks"] = (
            "as few as meet the limits" if config.may_move_blocks else _named(config.fp16_blocks)
        )
    return found


def _calibration(config: CalibrationConfig, calibrated: Calibrated) -> dict[str, str]:
    table, recipe = calibrated.table, calibrated.recipe
    return {
        "effort": config.effort or (DEFAULT_EFFORT if config.table is None else "that of the table"),
        "calibration method": table.method,
        "calibration images": str(table.images.count),
        "seed": str(table.images.seed),
        "equalize": _WORDS[bool(table.factors())],
        "bias correction": _WORDS[recipe.bias_correction],
        "rounding": recipe.rounding,
        "weight scales": recipe.weight_scales,
        "full range": f"{sum(1 for count in table.levels().values() if count > 127)} tensors",
        "exact pixels": _WORDS[calibrated.exact_pixels],
    }


def _named(blocks: tuple[str, ...] | str | None) -> str:
    return blocks or "none" if blocks is None or isinstance(blocks, str) else ", ".join(blocks)

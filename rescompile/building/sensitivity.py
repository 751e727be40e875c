"""``rescompile sensitivity``: a network is quantized, and its blocks are ranked by the damage that this does."""

from __future__ import annotations

from rescompile.accuracy.sensitivity import SensitivityReport, expected_damage, measure_damage, ranked
from rescompile.building.calibrate import Calibrated, calibrate, calibration_of, sample_images
from rescompile.building.opening import open_source
from rescompile.building.quantize import original_of, quantize
from rescompile.building.source import Source
from rescompile.config import CalibrationConfig, ModelConfig, positive
from rescompile.progress import Progress, StageClock


def rank_blocks(
    model: ModelConfig, calibration: CalibrationConfig, progress: Progress, *, count: int
) -> SensitivityReport:
    """Rank the network's blocks by the damage of their quantization, on at most ``count`` calibration images.

    Raises:
        UsageError: ``count`` is less than 1, or there are no images to calibrate with.
    """
    positive(count, "--images")
    clock = StageClock(progress)
    with clock.stage("load"):
        source = open_source(model, progress, (calibration.images,))
    calibration = calibration_of(source, calibration)
    with clock.stage("calibrate"):
        calibrated = calibrate(source, calibration, progress)
    with clock.stage("quantize"):
        quantized = quantize(source, calibrated, progress)
    with clock.stage("sensitivity"):
        images = sample_images(calibration, source, count)
        damage = measure_damage(
            original_of(source, calibrated), quantized, images, progress=progress.advanced
        )
    return SensitivityReport(
        model=source.name,
        images=len(images),
        image_source=calibrated.table.images.source,
        together=damage.together,
        blocks=damage.blocks,
        ranking=ranked(damage.blocks),
        expected=_expected(source, calibrated),
        notes=(*source.notes, *calibrated.notes),
    )


def _expected(source: Source, calibrated: Calibrated) -> dict[str, float]:
    """The damage that the noise model of the calibration expects of each block; empty where there is no model."""
    if calibrated.comparison is None:
        return {}
    method = calibrated.table.method
    results = {name: entry[method].logits_rms for name, entry in calibrated.comparison.tensors.items()}
    return expected_damage(source.graph, results)

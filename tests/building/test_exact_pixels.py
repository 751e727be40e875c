"""INT8 builds quantize pixels without error, whatever made the table."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import onnx
import pytest
import torch

from calibration.images import InMemoryImages, open_image_set
from calibration.methods.rounding import first_moments
from calibration.preprocess import normalize
from calibration.table import CalibrationTable
from rescompile.backends import BACKENDS, get_backend
from rescompile.building.calibrate import Calibrated, calibrate
from rescompile.building.quantize import moments_after, original_of, quantize
from rescompile.building.source import Source
from rescompile.building.validation import Validation, notes_on_float_images
from rescompile.config import CalibrationConfig
from rescompile.graph.pixels import to_pixels
from rescompile.graph.shared.names import INPUT, PIXEL_STEP, PIXELS
from rescompile.progress import Silent
from tests.graph.conftest import run


def made(source: Source, *, exact: bool = True, **fields: Any) -> Calibrated:
    """Calibrated, or as if the normalization had lost the pixels."""
    with (
        nullcontext()
        if exact
        else patch("rescompile.building.calibrate.reason_against", return_value="asked")
    ):
        return calibrate(source, CalibrationConfig(**fields), Silent())


def scales_of(graph: onnx.ModelProto) -> dict[str, float]:
    """Scale of every activation."""
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.graph.initializer}
    return {
        node.input[0]: float(held[node.input[1]])
        for node in graph.graph.node
        if node.op_type == "QuantizeLinear"
    }


@pytest.fixture(scope="module")
def table(small: Path, small_source: Source) -> CalibrationTable:
    return made(small_source, images=small / "images.npz", limit=8).table


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_the_stem_is_nearer_to_fp32_with_exact_pixels(small: Path, small_source: Source, effort: str) -> None:
    images = small / "images.npz"
    x = normalize(np.load(images)["images"], small_source.preprocess)
    errors = []
    for exact in (True, False):
        calibrated = made(small_source, exact=exact, images=images, effort=effort, limit=4)
        expected, found = (
            run(graph, x, ["conv1"])["conv1"]
            for graph in (original_of(small_source, calibrated), quantize(small_source, calibrated, Silent()))
        )
        errors.append(float(np.square(found - expected).sum() / np.square(expected).sum()))
    assert errors[0] < 0.9 * errors[1]


def test_the_table_is_the_same_for_every_backend(
    small: Path, small_source: Source, table: CalibrationTable
) -> None:
    plain = made(small_source, exact=False, images=small / "images.npz", limit=8)
    assert plain.table == table
    assert PIXELS not in table.tensors
    graph = quantize(small_source, plain, Silent())
    assert scales_of(graph)[INPUT] == table.scales()[INPUT]


def test_a_table_that_was_read_makes_pixels(
    small_source: Source, table: CalibrationTable, tmp_path: Path
) -> None:
    table.write(tmp_path / "t.json")
    read = made(small_source, table=tmp_path / "t.json")
    found = scales_of(quantize(small_source, read, Silent()))
    assert found.pop(PIXELS) == PIXEL_STEP
    shared = set(table.tensors) - {INPUT}
    assert {name: found[name] for name in shared} == {name: table.scales()[name] for name in shared}
    assert INPUT not in found


def test_a_normalization_that_loses_the_pixel_keeps_its_scale(small: Path, small_source: Source) -> None:
    far = replace(
        small_source, preprocess=msgspec.structs.replace(small_source.preprocess, mean=(-100.0,) * 3)
    )
    calibrated = made(far, images=small / "images.npz", limit=4, effort="fast")
    assert not calibrated.exact_pixels
    assert original_of(far, calibrated) is far.graph


def floats_of(small: Path, source: Source, factor: float) -> InMemoryImages:
    """Images as a program normalizes them that divides by another std."""
    x = normalize(np.load(small / "images.npz")["images"][:8], source.preprocess)
    return InMemoryImages(np.asarray(factor * x, np.float32), name="calibration images")


@pytest.mark.parametrize(("factor", "exact"), [(0.5, True), (1.0, True), (3.0, False)])
def test_float_images_beyond_those_of_pixels_are_not_clipped(
    small: Path, small_source: Source, factor: float, exact: bool
) -> None:
    images = floats_of(small, small_source, factor)
    calibrated = made(small_source, images=images, limit=8, effort="fast")
    assert calibrated.exact_pixels == exact
    said = [note for note in calibrated.notes if "the float values of calibration images go from" in note]
    assert len(said) == (not exact)
    scales = scales_of(quantize(small_source, calibrated, Silent()))
    if exact:
        assert scales[PIXELS] == PIXEL_STEP
        return
    assert f"to {images.images.max(axis=(0, 2, 3)).max():.3g} in channel" in said[0]
    assert said[0].endswith("pass the preprocessing that made them, or uint8 pixels")
    # the largest value that the quantizer holds, of which thresholds leave out a little
    assert 127 * scales[INPUT] > 0.8 * np.abs(images.images).max()


def test_a_judgement_on_floats_that_are_not_of_pixels_says_so(small: Path, small_source: Source) -> None:
    calibrated = made(small_source, images=small / "images.npz", limit=4, effort="fast")
    told = []
    for factor in (1.0, 3.0):
        judged = Validation(open_image_set(floats_of(small, small_source, factor)), executed=True, notes=())
        told.append(notes_on_float_images(judged, small_source, calibrated))
        assert notes_on_float_images(judged, small_source, replace(calibrated, exact_pixels=False)) == ()
        told.append(notes_on_float_images(judged, small_source, None))  # without INT8
    assert told[:2] == [(), ()]
    assert told[2][0].startswith("the engine clips what it is judged on: the float values of")
    assert told[3][0].startswith("photographs are fed otherwise than these images: the float values of")


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_comparison_says_what_the_input_costs(small: Path, small_source: Source, effort: str) -> None:
    for exact in (True, False):
        comparison = made(
            small_source, exact=exact, images=small / "images.npz", limit=4, effort=effort
        ).comparison
        assert comparison is not None
        for result in comparison.tensors[INPUT].values():
            assert (result.sqnr_db is None) == exact
            if effort == "balanced":
                assert result.logits_rms is not None
                assert (result.logits_rms == 0) == exact
            else:
                assert result.logits_rms is None


def test_moments_of_pixels_follow_from_those_of_the_input(small: Path, small_source: Source) -> None:
    x = normalize(np.load(small / "images.npz")["images"][:4], small_source.preprocess)
    factor, offset = (values.reshape(1, 3, 1, 1) for values in to_pixels(small_source.preprocess))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))) * factor + offset
    patches = torch.nn.functional.unfold(torch.from_numpy(padded), 3).transpose(0, 1).flatten(1)
    found = moments_after(first_moments(small_source.graph, list(x)), *to_pixels(small_source.preprocess))
    assert np.allclose(found[-1], patches.mean(1), atol=1e-5)
    assert np.allclose(found[:-1], torch.cov(patches, correction=0), atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_reads_pixels(name: str, small: Path, small_source: Source) -> None:
    config = CalibrationConfig(images=small / "images.npz", limit=4, effort="fast")
    calibrated = calibrate(small_source, config, Silent(), get_backend(name).int8)
    assert PIXELS in scales_of(quantize(small_source, calibrated, Silent()))

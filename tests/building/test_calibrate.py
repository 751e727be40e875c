"""Scales come from the user's images, a table that fits, or the built-in photographs; never from anything else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import CalibrationError, ImageSetError, TableError
from calibration.images.builtin import builtin_image_set
from calibration.preprocess import normalize
from calibration.table import CalibrationTable, make_table, read_table
from rescompile.backends.base import Int8Support
from rescompile.building.calibrate import (
    Calibrated,
    calibrate,
    calibration_images,
)
from rescompile.building.opening import open_source
from rescompile.building.quantize import original_of, quantize
from rescompile.building.source import Source
from rescompile.config import CalibrationConfig, ModelConfig
from rescompile.errors import UsageError
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.lint import lint
from rescompile.graph.shared.metadata import factors_of, offsets_of
from rescompile.graph.shared.topology import (
    block_outputs,
    full_range_tensors,
    quantized_tensors,
    reading_all_of_int8,
)
from rescompile.progress import Silent
from tests.calibration.statistics.histograms import histogram_of
from tests.graph.conftest import run


def made(source: Source, **fields: Any) -> Calibrated:
    return calibrate(source, CalibrationConfig(**fields), Silent())


@pytest.fixture(scope="module")
def table(small: Path, small_source: Source) -> CalibrationTable:
    return made(small_source, images=small / "images.npz", method="entropy").table


@pytest.fixture
def saved(table: CalibrationTable, tmp_path: Path) -> Path:
    table.write(tmp_path / "table.json")
    return tmp_path / "table.json"


def test_a_table_says_where_its_numbers_come_from(small_source: Source, table: CalibrationTable) -> None:
    assert (table.model, table.checkpoint_sha256) == ("resnet20-cifar", small_source.checkpoint.sha256)
    assert (table.images.source, table.images.count, table.preprocess) == (
        "images.npz",
        24,
        small_source.preprocess,
    )
    assert list(table.tensors) == quantized_tensors(small_source.graph)
    assert all(scale > 0 for scale in table.scales().values())


def test_the_effort_chooses_the_method_unless_told(small: Path, small_source: Source) -> None:
    images = small / "images.npz"
    assert made(small_source, images=images, limit=4).table.method == "logit"
    fast = made(small_source, images=images, limit=4, effort="fast").table
    assert (fast.method, fast.means(), fast.factors()) == ("mse", {}, {})
    assert made(small_source, images=images, limit=4, effort="fast", method="max").table.method == "max"
    with pytest.raises(CalibrationError, match="logit needs gradients: calibrate with --effort balanced"):
        made_table_without_gradients(small_source)


@pytest.mark.parametrize(
    ("features", "effort", "half", "words"),
    [
        (("avx512f", "amx_bf16"), "balanced", True, "collected in bfloat16"),
        (("avx512f",), "balanced", False, "no instructions for bfloat16"),
        (("avx512f", "avx512_bf16"), "fast", False, "--effort fast takes no statistics of channels"),
    ],
)
def test_statistics_in_bfloat16_are_said_or_refused_with_a_reason(
    small: Path,
    small_source: Source,
    features: tuple[str, ...],
    effort: str,
    half: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rescompile.building.calibrate.cpu_features", lambda: features)
    found = made(small_source, images=small / "images.npz", limit=4, effort=effort, fast_collect=True)
    assert found.table.half == half == found.table.version.endswith("+bfloat16")
    assert words in " ".join(found.notes)
    plain = made(small_source, images=small / "images.npz", limit=4, effort=effort).table
    assert not plain.half
    assert (found.table.scales() == plain.scales()) != half


def made_table_without_gradients(source: Source) -> CalibrationTable:
    return make_table(
        {"input": histogram_of([1.0])},
        "logit",
        model="m",
        checkpoint_sha256="0" * 64,
        images=builtin_image_set(count=1),
        preprocess=source.preprocess,
    )


def test_a_table_of_channels_makes_the_same_graph_without_images(
    small: Path, small_source: Source, tmp_path: Path
) -> None:
    calibrated = made(small_source, images=small / "images.npz", limit=8, rounding="nearest")
    calibrated.table.write(tmp_path / "t.json")
    again = made(small_source, table=tmp_path / "t.json")
    assert again.table == calibrated.table
    first, second = (quantize(small_source, entry, Silent()) for entry in (calibrated, again))
    assert first.SerializeToString() == second.SerializeToString()
    assert set(factors_of(first)) == set(block_outputs(small_source.graph).values())


@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_every_effort_stays_close_to_fp32(small: Path, small_source: Source, effort: str) -> None:
    calibrated = made(small_source, images=small / "images.npz", limit=8, effort=effort)
    graph = quantize(small_source, calibrated, Silent())
    pixels = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    expected, found = run(small_source.graph, pixels)["logits"], run(graph, pixels)["logits"]
    assert 0 < np.sqrt(np.square(found - expected).sum() / np.square(expected).sum()) < 0.1
    assert not lint(graph, precision="int8", rest_type="float32", residual_adds=9)


@pytest.fixture(scope="module")
def bottlenecks() -> Source:
    return open_source(ModelConfig(model="resnet20-cifar-bottleneck", weights="random"), Silent())


def relative_errors(
    quantized: onnx.ModelProto, original: onnx.ModelProto, tensors: list[str], pixels: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Squared error of each of ``tensors`` after its DequantizeLinear, over its squares in ``original``."""
    readers = {node.input[0]: node for node in quantized.graph.node if node.op_type.endswith("Linear")}
    restored = {name: readers[readers[name].output[0]].output[0] for name in tensors}
    found = run(quantized, pixels, outputs=list(restored.values()))
    expected = run(original, pixels, outputs=tensors)
    return np.array(
        [
            np.square(found[restored[name]] - expected[name]).sum() / np.square(expected[name]).sum()
            for name in tensors
        ]
    )


@pytest.mark.parametrize("rounding", ["nearest", "learned"])
def test_the_full_range_brings_bottlenecks_nearer_to_fp32(
    small: Path, bottlenecks: Source, rounding: str, tmp_path: Path
) -> None:
    pixels = normalize(np.load(small / "images.npz")["images"], bottlenecks.preprocess)
    able, errors = full_range_tensors(bottlenecks.graph), []
    for full_range in (True, False):
        calibrated = made(
            bottlenecks, images=small / "images.npz", limit=8, rounding=rounding, full_range=full_range
        )
        wide = [name for name, levels in calibrated.table.levels().items() if levels == 255]
        assert wide == (able if full_range else [])
        quantized = quantize(bottlenecks, calibrated, Silent())
        graph = fold_zero_points(quantized)
        assert set(offsets_of(graph)) == set(wide)
        assert not lint(graph, precision="int8", rest_type="float32", residual_adds=6)
        errors.append(relative_errors(quantized, original_of(bottlenecks, calibrated), able, pixels))
    # the tensors themselves: between the logits of a random network a tie that rounds the other way can decide
    assert np.exp(np.mean(np.log(errors[0] / errors[1]))) < 0.75
    calibrated.table.write(tmp_path / "t.json")
    again = quantize(bottlenecks, made(bottlenecks, table=tmp_path / "t.json"), Silent())
    assert rounding == "learned" or again == graph, "a table brings its levels"


@pytest.mark.parametrize(
    ("backend", "effort", "wide"),
    [
        ("free", "fast", 12),
        ("free", "balanced", 12),
        ("costs", "balanced", 0),
        ("costs", "best", 12),
    ],
)
def test_the_backend_decides_with_the_effort_who_gets_the_full_range(
    small: Path, bottlenecks: Source, backend: Any, effort: Any, wide: int
) -> None:
    config = CalibrationConfig(images=small / "images.npz", limit=4, effort=effort)
    calibrated = calibrate(bottlenecks, config, Silent(), Int8Support(backend))
    assert list(calibrated.table.levels().values()).count(255) == wide
    held = {
        tensor.name.removesuffix(".weight.int8"): np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()
        for tensor in quantize(bottlenecks, calibrated, Silent()).graph.initializer
        if tensor.name.endswith(".weight.int8")
    }
    narrow = {name for name, largest in held.items() if largest <= 63}
    if backend != "costs":
        assert not narrow
    elif effort == "balanced":
        assert narrow == {"conv1"}
    else:
        assert narrow == set(reading_all_of_int8(bottlenecks.graph, full_range_tensors(bottlenecks.graph)))


@pytest.mark.parametrize(
    ("channels", "asked", "wide"),
    [
        ("never", True, 0),
        ("padding", None, 7),
        ("padding", True, 18),
        ("padding", False, 0),
        ("free", None, 18),
    ],
)
def test_padded_tensors_have_the_full_range_where_constant_channels_cost_nothing(
    small: Path, small_source: Source, channels: Any, asked: bool | None, wide: int
) -> None:
    config = CalibrationConfig(images=small / "images.npz", limit=4, effort="balanced", full_range=asked)
    calibrated = calibrate(small_source, config, Silent(), Int8Support("free", channels))
    found = [name for name, levels in calibrated.table.levels().items() if levels == 255]
    assert len(found) == wide
    assert wide != 7 or all(name.startswith(("relu1", "layer1.")) for name in found), "16 channels"
    said = [note for note in calibrated.notes if "256 values" in note]
    if asked is False:
        assert not said
        return
    assert len(said) == 1
    inner = len(calibrated.table.tensors) - 1
    assert said[0].startswith(f"{wide} of {inner} " if wide else "--full-range changes nothing")
    reasons = {0: "18 padded by a convolution", 7: "11 padded, of more than 16 channels"}
    assert reasons.get(wide, "") in said[0]


def test_rounding_is_learned_where_that_takes_seconds(
    small: Path, small_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(**fields: Any) -> str:
        return made(small_source, images=small / "images.npz", limit=4, **fields).recipe.rounding

    assert [chosen(), chosen(effort="balanced"), chosen(effort="fast")] == ["learned", "learned", "nearest"]
    assert chosen(rounding="nearest") == "nearest"
    monkeypatch.setattr("rescompile.building.calibrate.SMALL", 1_000)
    assert [chosen(), chosen(effort="best")] == ["nearest", "learned"]


def test_a_table_of_full_range_is_refused_where_the_backend_does_not_take_it(
    small: Path, small_source: Source, tmp_path: Path
) -> None:
    config = CalibrationConfig(images=small / "images.npz", limit=4, effort="fast", full_range=True)
    calibrate(small_source, config, Silent(), Int8Support("free", "free")).table.write(tmp_path / "t.json")
    with pytest.raises(UsageError, match="all 256 values of int8, which the backend does not take there"):
        calibrate(small_source, CalibrationConfig(table=tmp_path / "t.json"), Silent(), Int8Support("free"))


def test_pixels_of_another_network_are_refused(
    small_source: Source, bottlenecks: Source, table: CalibrationTable
) -> None:
    moments = np.zeros((4, 3), np.float32).tobytes()
    foreign = msgspec.structs.replace(table, first_moments=moments)
    with pytest.raises(TableError, match=r"first_moments are of 3 weights, 'conv1' has 27"):
        quantize(small_source, Calibrated(foreign), Silent())
    without = msgspec.structs.replace(table, first_moments=b"")
    nearest = quantize(small_source, Calibrated(without), Silent())
    assert nearest != quantize(small_source, Calibrated(table), Silent())


@pytest.mark.parametrize(
    "options", [{"effort": "best"}, {"equalize": True}, {"rounding": "learned"}, {"equalize": False}]
)
def test_what_needs_images_is_refused_beside_a_table(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="need images, and --calibration brings none"):
        CalibrationConfig(table=Path("t.json"), **options)


def test_each_method_can_be_chosen_by_itself(small: Path, small_source: Source) -> None:
    images = small / "images.npz"
    corrected = made(small_source, images=images, limit=4, effort="fast", bias_correction=True)
    assert corrected.table.means()
    assert not corrected.table.factors()
    plain = made(small_source, images=images, limit=4, effort="balanced", equalize=False)
    assert (plain.table.method, plain.table.factors()) == ("logit", {})
    graphs = {
        quantize(small_source, entry, Silent()).SerializeToString()
        for entry in (
            corrected,
            replace(corrected, recipe=replace(corrected.recipe, bias_correction=False)),
            replace(corrected, recipe=replace(corrected.recipe, weight_scales="mse")),
        )
    }
    assert len(graphs) == 3


def test_bias_correction_is_refused_for_a_table_without_means(
    small: Path, small_source: Source, tmp_path: Path
) -> None:
    made(small_source, images=small / "images.npz", limit=4, effort="fast").table.write(tmp_path / "t.json")
    with pytest.raises(UsageError, match="--bias-correction needs channel means"):
        made(small_source, table=tmp_path / "t.json", bias_correction=True)


def test_progress_reaches_the_number_of_images(small: Path, small_source: Source) -> None:
    steps: list[tuple[int, int]] = []

    class Seen(Silent):
        def advanced(self, done: int, total: int) -> None:
            steps.append((done, total))

    calibrate(small_source, CalibrationConfig(images=small / "images.npz", limit=10), Seen())
    assert steps[:5] == [(2, 20), (4, 20), (6, 20), (8, 20), (10, 20)]
    assert steps[-1] == (20, 20)  # the gradients of these images


def test_a_table_keeps_its_own_method_unless_told(
    small_source: Source, saved: Path, table: CalibrationTable
) -> None:
    assert made(small_source, table=saved).table == table
    assert made(small_source, table=saved, method="max").table == table.with_method("max")
    with pytest.raises(TableError, match="holds no thresholds for percentile:98"):
        made(small_source, table=saved, method="percentile:98")


def test_a_table_of_something_else_is_refused(small_source: Source, saved: Path) -> None:
    checkpoint = msgspec.structs.replace(small_source.checkpoint, sha256="0" * 64)
    with pytest.raises(TableError, match="belongs to another checkpoint"):
        made(replace(small_source, checkpoint=checkpoint), table=saved)
    preprocess = msgspec.structs.replace(small_source.preprocess, color="BGR")
    with pytest.raises(TableError, match="color was RGB, here it is BGR"):
        made(replace(small_source, preprocess=preprocess), table=saved)


def test_a_table_without_a_tensor_is_refused(
    small_source: Source, table: CalibrationTable, tmp_path: Path
) -> None:
    rest = {name: entry for name, entry in table.tensors.items() if name != "layer2.0.relu"}
    cut = msgspec.structs.replace(table, tensors=rest)
    msgspec.structs.replace(cut, sha256=cut.digest()).write(tmp_path / "cut.json")
    assert read_table(tmp_path / "cut.json").tensors == rest
    with pytest.raises(TableError, match=r"no range for tensor 'layer2\.0\.relu' \(1 of 21"):
        made(small_source, table=tmp_path / "cut.json")


def test_photographs_stand_in_for_imagenet_only(small_source: Source) -> None:
    with pytest.raises(UsageError, match=r"this resnet20-cifar with 10 classes will see.*--calibration-set"):
        calibration_images(CalibrationConfig(), small_source)
    found = calibration_images(CalibrationConfig(), replace(small_source, is_imagenet=True))
    assert found.source == "built-in photographs"


@pytest.mark.parametrize(("limit", "used"), [(5, 5), (127, 127), (512, 128)])
def test_the_limit_is_one_for_photographs_too(small_source: Source, limit: int, used: int) -> None:
    found = calibration_images(CalibrationConfig(limit=limit), replace(small_source, is_imagenet=True))
    assert len(found) == used


def test_the_built_in_photographs_come_with_advice(small_source: Source) -> None:
    (advice,) = made(replace(small_source, is_imagenet=True)).notes
    assert "built-in photographs; pass --calibration-set" in advice


def pictures(folder: Path, broken: int) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
    for index in range(broken):
        (folder / f"broken{index}.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(("broken", "words"), [(1, r"broken0\.png$"), (7, r"broken4\.png, …$")])
def test_images_that_were_left_out_are_named(
    small_source: Source, tmp_path: Path, broken: int, words: str
) -> None:
    folder = pictures(tmp_path / "set", broken)
    with pytest.raises(ImageSetError, match=r"broken0\.png cannot be read"):
        made(small_source, images=folder)
    found = made(small_source, images=folder, skip_unreadable=True)
    assert found.table.images.count == 3
    (note,) = found.notes
    assert re.search(words, note)
    assert f"{broken} unreadable image" in note

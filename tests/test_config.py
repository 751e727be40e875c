"""Options that make no sense are refused at once, with the name of the option and what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rescompile.config import (
    BuildConfig,
    CalibrationConfig,
    ModelConfig,
    parse_batch,
    parse_fp16_blocks,
)
from rescompile.errors import UsageError
from rescompile.manifest import Batch
from rescompile.report import Limits

MODEL = ModelConfig(depth=50)


@pytest.mark.parametrize(
    ("text", "batch"),
    [("1", (1, 1, 1)), ("8", (8, 8, 8)), ("1:8:32", (1, 8, 32)), ("65536", (65536, 65536, 65536))],
)
def test_a_batch_is_one_size_or_a_range(text: str, batch: tuple[int, int, int]) -> None:
    assert parse_batch(text) == Batch(*batch)


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:3:4", "-1", "1.5", "²", " 8", "1:2:"])
def test_what_is_no_batch_is_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood; write one size"):
        parse_batch(text)


@pytest.mark.parametrize("text", ["0", "0:1:2", "2:1:3", "1:3:2", "65537"])
def test_a_batch_ascends_from_one(text: str) -> None:
    with pytest.raises(UsageError, match="1 <= MIN <= OPT <= MAX <= 65536"):
        parse_batch(text)


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (None, None),
        ("auto", "auto"),
        ("none", "none"),
        ("fc", ("fc",)),
        ("stem, layer1.0", ("stem", "layer1.0")),
    ],
)
def test_blocks_in_fp16_are_a_mode_or_names(text: str | None, blocks: object) -> None:
    assert parse_fp16_blocks(text) == blocks


@pytest.mark.parametrize("text", ["", "stem,", ",", "stem,,fc"])
def test_an_empty_block_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--fp16-blocks .* has an empty name"):
        parse_fp16_blocks(text)


BUDGET = {"validation_set": Path("val"), "limits": Limits(min_agreement=0.97)}


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        (BUDGET, True),
        (BUDGET | {"limits": Limits(max_top1_drop=0.3)}, True),
        (BUDGET | {"limits": Limits(max_relative_rms=0.1)}, False),
        (BUDGET | {"limits": Limits(max_relative_rms=0.1), "fp16_blocks": "auto"}, True),
        (BUDGET | {"limits": None}, False),
        (BUDGET | {"validation_set": None}, False),
        (BUDGET | {"fp16_blocks": "none"}, False),
        (BUDGET | {"fp16_blocks": ("fc",)}, False),
        (BUDGET | {"precision": "fp16"}, False),
        (BUDGET | {"backend": "triton"}, False),
        (BUDGET | {"calibration": CalibrationConfig(table=Path("t.json"))}, False),
    ],
)
def test_a_budget_is_kept_where_agreement_or_drop_is_asked_of_a_validation_set(
    changes: dict[str, Any], keeps: bool
) -> None:
    assert BuildConfig(model=MODEL, **changes).may_move_blocks == keeps


REFUSED: list[tuple[Callable[..., object], dict[str, Any], str]] = [
    (ModelConfig, {}, "no network was named"),
    (ModelConfig, {"weights": "random"}, "no network was named"),
    (ModelConfig, {"depth": 50, "model": "resnet50"}, "--depth and --model both name"),
    (ModelConfig, {"model": "resnet50", "onnx": Path("a")}, "--model and --onnx both name"),
    (ModelConfig, {"onnx": Path("a"), "weights": "b.pth"}, "brings its own weights"),
    (ModelConfig, {"onnx": Path("a"), "shortcut": "A"}, "brings its own structure"),
    (ModelConfig, {"onnx": Path("a"), "stride_on": "1x1"}, "brings its own structure"),
    (ModelConfig, {"depth": 50, "seed": -1}, "--seed -1 is negative"),
    (CalibrationConfig, {"images": Path("a"), "table": Path("b")}, "pass one of them"),
    (CalibrationConfig, {"limit": 0}, "--calibration-images 0 leaves no image"),
    (CalibrationConfig, {"seed": -1}, "--seed -1 is negative"),
    (CalibrationConfig, {"method": "median"}, "--calibration-method: 'median' is not a calibration method"),
    (CalibrationConfig, {"method": "percentile:101"}, "--calibration-method: .*101"),
    (
        BuildConfig,
        {"model": MODEL, "precision": "fp16", "fp16_blocks": "auto"},
        "leave it out with --precision fp16",
    ),
    (
        BuildConfig,
        {"model": MODEL, "fp16_blocks": ("fc",), "backend": "triton"},
        "cannot leave blocks of INT8 engines in FP16",
    ),
    (
        BuildConfig,
        {"model": MODEL, "precision": "fp16", "calibration": CalibrationConfig(full_range=True)},
        "--full-range belongs to int8 engines",
    ),
    (
        BuildConfig,
        {"model": MODEL, "precision": "fp32", "calibration": CalibrationConfig(fast_collect=True)},
        "--fast-collect belongs to int8 engines",
    ),
    (CalibrationConfig, {"table": Path("a"), "full_range": False}, "--full-range need images"),
    (BuildConfig, {"model": MODEL, "fp16_blocks": "auto"}, "pass --validation-set with --min-agreement"),
    (
        BuildConfig,
        {
            "model": MODEL,
            "fp16_blocks": "auto",
            "calibration": CalibrationConfig(table=Path("t.json")),
            **BUDGET,
        },
        "--calibration brings none; pass --calibration-set instead, or name the blocks",
    ),
    (BuildConfig, {"model": MODEL, "precision": "int4"}, "--precision int4 is unknown; choose one of fp32"),
    (BuildConfig, {"model": MODEL, "precision": "fp23"}, r"Did you mean 'fp\d\d'"),
    (BuildConfig, {"model": MODEL, "input_format": "uint8"}, "--input uint8 is unknown"),
    (BuildConfig, {"model": MODEL, "validation_images": 0}, "--validation-images 0 leaves no image"),
]


@pytest.mark.parametrize(("kind", "fields", "words"), REFUSED)
def test_contradictions_are_refused(kind: Callable[..., object], fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        kind(**fields)


@pytest.mark.parametrize(
    ("effort", "full_range", "backends"),
    [
        ("fast", None, ("free",)),
        ("balanced", None, ("free",)),
        ("best", None, ("free", "costs")),
        ("fast", True, ("free", "costs")),
        ("best", False, ()),
    ],
)
def test_the_full_range_is_taken_where_it_is_worth_its_price(
    effort: Any, full_range: bool | None, backends: tuple[str, ...]
) -> None:
    assert CalibrationConfig(effort=effort, full_range=full_range).recipe.full_range == backends


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("source", ["images", "table"])
def test_float_engines_take_no_calibration(precision: Any, source: str) -> None:
    calibration = CalibrationConfig(**{source: Path("a")})
    with pytest.raises(UsageError, match=f"--precision {precision} needs none"):
        BuildConfig(model=MODEL, precision=precision, calibration=calibration)


@pytest.mark.parametrize(
    "fields", [{"depth": 50}, {"model": "resnet50"}, {"onnx": Path("a")}, {"weights": "net.pth"}]
)
def test_one_name_of_the_network_is_enough(fields: dict[str, Any]) -> None:
    assert ModelConfig(**fields).seed == 0


def test_a_name_with_an_unknown_scheme_is_told_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="--model keras:resnet begins with none of timm:, torchvision:, hf:, module:"
    ):
        ModelConfig(model="keras:resnet")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [(("c4", "c4"), "--outputs names 'c4' twice"), (("",), "--outputs has an empty name")],
)
def test_outputs_have_different_names(outputs: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ModelConfig(model="torchvision:resnet18", outputs=outputs)

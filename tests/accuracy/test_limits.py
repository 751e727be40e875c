"""A measurement is judged by the limits that were asked, or by defaults."""

from __future__ import annotations

import math

import pytest

from rescompile.accuracy.limits import (
    check_speed_limit,
    default_limits,
    judge,
    judge_speed,
    limits_for,
    speed_not_judged,
)
from rescompile.errors import UsageError
from rescompile.report import Limits, Parity, Speed


def parity(**changes) -> Parity:
    values = {
        "images": 10, "image_source": "photos", "image_fingerprint": "f", "top1_reference": 1.0, "top1_engine": 1.0,
        "top1_agreement": 1.0, "relative_rms": 0.01, "cosine": 1.0, "max_abs": 0.01,
    }  # fmt: skip
    return Parity(**(values | changes))


def test_without_limits_only_finite_logits_are_asked() -> None:
    (check,) = judge(parity(), Limits())
    assert (check.name, check.asked, check.measured, check.passed) == (
        "finite logits", "all", "all of 10 images", True,
    )  # fmt: skip


@pytest.mark.parametrize(("agreement", "passed"), [(0.96, True), (288 / 300, True), (0.95999, False)])
def test_agreement_passes_from_its_limit_on(agreement: float, passed: bool) -> None:
    check = judge(parity(top1_agreement=agreement), Limits(min_agreement=0.96))[1]
    assert (check.name, check.asked, check.passed) == ("agreement", "at least 96 %", passed)


def test_agreement_just_below_its_limit_is_not_printed_like_the_limit() -> None:
    check = judge(parity(top1_agreement=0.95999), Limits(min_agreement=0.96))[1]
    assert check.measured == "95.999 %"


@pytest.mark.parametrize(("engine", "passed"), [(0.9319, True), (0.9318, False), (0.95, True)])
def test_top1_drop_is_in_points_and_passes_up_to_its_limit(engine: float, passed: bool) -> None:
    measured = parity(top1_reference=0.9339, top1_engine=engine)
    check = judge(measured, Limits(max_top1_drop=0.2))[1]
    assert (check.name, check.asked, check.passed) == ("top-1 drop", "at most 0.2 points", passed)


def test_top1_drop_without_labels_is_a_usage_error() -> None:
    measured = parity(top1_reference=None, top1_engine=None)
    with pytest.raises(UsageError, match=r"photos have no labels.*--min-agreement") as error:
        judge(measured, Limits(max_top1_drop=0.2))
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("rms", "passed"), [(0.04, True), (0.0401, False), (math.inf, False), (math.nan, False)]
)
def test_relative_rms_passes_up_to_its_limit(rms: float, passed: bool) -> None:
    check = judge(parity(relative_rms=rms), Limits(max_relative_rms=0.04))[1]
    assert (check.name, check.asked, check.passed) == ("relative RMS", "at most 0.04", passed)


def test_every_limit_has_its_line() -> None:
    limits = Limits(
        min_agreement=0.9,
        max_top1_drop=1.0,
        max_relative_rms=0.1,
        min_top1=0.5,
        min_cosine=0.9,
        max_error=2.0,
    )
    names = [check.name for check in judge(parity(), limits)]
    assert names == [
        "finite logits", "agreement", "top-1 drop", "top-1", "relative RMS", "smallest cosine", "largest error",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "limits", "passed"),
    [
        ({"max_abs": 0.02}, Limits(max_error=0.02), True),
        ({"max_abs": 0.0201}, Limits(max_error=0.02), False),
        ({"worst_cosine": 0.99}, Limits(min_cosine=0.99), True),
        ({"worst_cosine": 0.98, "cosine": 0.999}, Limits(min_cosine=0.99), False),
        ({"worst_cosine": None, "cosine": 0.98}, Limits(min_cosine=0.99), False),
    ],
)
def test_errors_and_cosines_of_numbers(measured: dict[str, float], limits: Limits, passed: bool) -> None:
    for kind in ("values", "features"):
        found = judge(parity(task=kind, top1_agreement=None, **measured), limits)
        assert [check.passed for check in found] == [True, passed]


def test_default_limits_follow_the_precision() -> None:
    limits = {p: default_limits(p, random_weights=False) for p in ("fp32", "fp16", "int8")}
    assert limits["fp32"] == Limits(min_agreement=0.995, max_relative_rms=1e-3)
    assert limits["fp16"] == Limits(min_agreement=0.99, max_relative_rms=0.02)
    assert limits["int8"] == Limits(min_agreement=0.90, max_relative_rms=0.15)


def test_nothing_is_asked_of_random_weights() -> None:
    assert default_limits("int8", random_weights=True) == Limits()


def speed(engine_ms: float) -> Speed:
    return Speed(
        batch=1, library="OpenVINO", engine_ms=engine_ms, engine_interval=(engine_ms, engine_ms), fp32_ms=3.0,
        fp32_interval=(3.0, 3.0), engine_bytes=1, fp32_bytes=4,
    )  # fmt: skip


@pytest.mark.parametrize(("engine_ms", "passed"), [(1.0, True), (2.0, True), (2.001, False), (6.0, False)])
def test_a_speed_up_passes_from_its_limit_on(engine_ms: float, passed: bool) -> None:
    (check,) = judge_speed(speed(engine_ms), Limits(min_speedup=1.5))
    assert (check.name, check.asked, check.passed) == ("speed", "at least 1.5 times fp32", passed)


def test_a_speed_that_was_not_asked_or_not_measured_is_not_judged() -> None:
    assert judge_speed(speed(9.0), Limits()) == ()
    assert judge_speed(None, Limits(min_speedup=2.0)) == ()
    assert speed_not_judged(speed(9.0), Limits(min_speedup=2.0)) == speed_not_judged(None, Limits()) == ()
    (note,) = speed_not_judged(None, Limits(min_speedup=2.0))
    assert "was not judged" in note


def test_a_limit_on_the_speed_alone_leaves_the_default_limits_beside_it() -> None:
    default = default_limits("int8", random_weights=False)
    assert limits_for(None, "int8", random_weights=False) == default
    found = limits_for(Limits(min_speedup=2.0), "int8", random_weights=False)
    assert (found.min_speedup, found.min_agreement, found.max_relative_rms) == (
        2.0, default.min_agreement, default.max_relative_rms,
    )  # fmt: skip
    for asked in (Limits(), Limits(max_error=1.0), Limits(max_error=1.0, min_speedup=2.0)):
        assert limits_for(asked, "int8", random_weights=False) == asked


def test_a_speed_up_of_an_engine_that_has_no_fp32_beside_it_is_refused() -> None:
    for backend in ("openvino", "onnxruntime"):
        check_speed_limit(Limits(min_speedup=2.0), backend)
    check_speed_limit(None, "triton")
    check_speed_limit(Limits(min_agreement=0.9), "triton")
    with pytest.raises(UsageError, match="not those of triton; build a second engine"):
        check_speed_limit(Limits(min_speedup=2.0), "triton")

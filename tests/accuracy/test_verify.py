"""What is promised of measuring an engine and judging it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from calibration.errors import ImageSetError
from rescompile.accuracy.verify import (
    SAMPLE_SIZE,
    ImageBatch,
    Measurement,
    default_limits,
    judge,
    measure_parity,
)
from rescompile.errors import BackendError, UsageError
from rescompile.report import Limits, Parity

WEIGHTS = np.random.default_rng(3).normal(size=(3 * 4 * 4, 6)).astype(np.float32)


def network(images):
    return images.reshape(-1, len(WEIGHTS)) @ WEIGHTS


def nhwc_network(images):
    return network(images.transpose(0, 3, 1, 2)) + np.float32(0.01)


def batches(count: int, size: int, *, labelled: bool = True):
    images = np.random.default_rng(4).normal(size=(count, 3, 4, 4)).astype(np.float32)
    labels = network(images).argmax(axis=1)
    for start in range(0, count, size):
        part = images[start : start + size]
        yield ImageBatch(part, part.transpose(0, 2, 3, 1), labels[start : start + size] if labelled else None)


def measure(count: int = 10, size: int = 4, **options) -> Measurement:
    names = {"image_source": "photos", "image_fingerprint": "f"}
    return measure_parity(network, nhwc_network, batches(count, size), **names, **options)


def parity(**changes) -> Parity:
    return msgspec.structs.replace(measure().parity, **changes)


def test_each_network_gets_its_own_input_and_both_are_compared() -> None:
    found = measure().parity
    assert (found.images, found.image_source, found.image_fingerprint) == (10, "photos", "f")
    assert (found.top1_reference, found.top1_engine, found.top1_agreement) == (1.0, 1.0, 1.0)
    assert found.max_abs == pytest.approx(0.01, rel=1e-3)


def test_progress_counts_images() -> None:
    seen: list[tuple[int, int]] = []
    measure(progress=lambda done, total: seen.append((done, total)), total=10)
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_all_logits_are_kept_while_they_are_few() -> None:
    pairs = np.array(measure(10).logits)
    assert pairs.shape == (60, 2)
    assert pairs[:, 1] - pairs[:, 0] == pytest.approx(np.full(60, 0.01), abs=1e-4)


def test_the_sample_of_many_logits_is_bounded_seeded_and_independent_of_the_batch_size() -> None:
    few, many = measure(500, 7), measure(500, 50)
    assert len(few.logits) == SAMPLE_SIZE
    # BLAS may round a matrix product otherwise for another batch size
    assert np.allclose(few.logits, many.logits, rtol=1e-5, atol=1e-5)


def test_the_sample_reaches_all_images() -> None:
    firsts = {pair[0] for pair in measure(500, 50).logits}
    logits = np.concatenate([network(batch.reference) for batch in batches(500, 50)])
    kept = [len(firsts & set(map(float, part.ravel()))) for part in np.array_split(logits, 10)]
    assert min(kept) > SAMPLE_SIZE / 10 / 2


def test_an_engine_that_returns_nan_is_no_measurement() -> None:
    with pytest.raises(BackendError, match="NaN"):
        measure_parity(
            network,
            lambda images: network(images) * np.nan,
            _same(3),
            image_source="s",
            image_fingerprint="f",
        )


def _same(count: int):
    for batch in batches(count, count):
        yield batch.reference, batch.reference, None


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ImageSetError, match="photos has no images"):
        measure(0)


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
    limits = Limits(min_agreement=0.9, max_top1_drop=1.0, max_relative_rms=0.1)
    names = [check.name for check in judge(parity(), limits)]
    assert names == ["finite logits", "agreement", "top-1 drop", "relative RMS"]


def test_default_limits_follow_the_precision() -> None:
    limits = {p: default_limits(p, random_weights=False) for p in ("fp32", "fp16", "int8")}
    assert limits["fp32"] == Limits(min_agreement=0.995, max_relative_rms=1e-3)
    assert limits["fp16"] == Limits(min_agreement=0.99, max_relative_rms=0.02)
    assert limits["int8"] == Limits(min_agreement=0.90, max_relative_rms=0.15)


def test_nothing_is_asked_of_random_weights() -> None:
    assert default_limits("int8", random_weights=True) == Limits()

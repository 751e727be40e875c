"""Comparison of logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import ImageSetError
from rescompile.errors import BackendError, CheckpointError
from rescompile.metrics import (
    MOST_CHANGES,
    Change,
    ParityMeter,
    binomial_tail,
    decibels,
    relative_rms,
    wilson,
)
from rescompile.report import Parity


def parity(reference, engine, labels=None) -> Parity:
    meter = ParityMeter()
    to_labels = None if labels is None else np.asarray(labels)
    meter.update(np.asarray(reference, np.float32), np.asarray(engine, np.float32), to_labels)
    return meter.result(image_source="set", image_fingerprint="f")


def test_equal_logits_agree_completely() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 10))
    result = parity(logits, logits)
    assert (result.images, result.top1_agreement, result.relative_rms, result.max_abs) == (5, 1.0, 0.0, 0.0)
    assert result.cosine == pytest.approx(1.0)


def test_figures_of_a_case_computed_by_hand() -> None:
    result = parity([[3.0, 4.0], [0.0, 5.0]], [[4.0, 3.0], [0.0, 5.0]], labels=[1, 1])
    assert result.top1_agreement == 0.5
    assert (result.top1_reference, result.top1_engine) == (1.0, 0.5)
    assert result.relative_rms == pytest.approx(math.sqrt(2 / 50))
    assert result.cosine == pytest.approx((24 / 25 + 1) / 2)
    assert result.max_abs == 1.0


def test_relative_rms_is_over_all_images_and_not_a_mean_of_images() -> None:
    result = parity([[10.0, 0.0], [1.0, 0.0]], [[10.0, 0.0], [2.0, 0.0]])
    assert result.relative_rms == pytest.approx(math.sqrt(1 / 101))


def test_source_and_fingerprint_are_kept() -> None:
    meter = ParityMeter()
    meter.update(np.ones((1, 2)), np.ones((1, 2)))
    result = meter.result(image_source="validation", image_fingerprint="abc")
    assert (result.image_source, result.image_fingerprint) == ("validation", "abc")


def test_top1_is_none_without_labels() -> None:
    result = parity([[1.0, 2.0]], [[1.0, 2.0]])
    assert result.top1_reference is None
    assert result.top1_engine is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_engine_with_logits_that_are_not_finite_is_refused_and_the_image_named(bad: float) -> None:
    meter = ParityMeter()
    meter.update(np.ones((3, 2)), np.ones((3, 2)))
    engine = np.ones((2, 2))
    engine[1, 0] = bad
    with pytest.raises(
        BackendError, match=r"engine returned NaN or infinite logits for image 4.*--precision"
    ):
        meter.update(np.ones((2, 2)), engine)


def test_nan_on_both_sides_is_never_agreement() -> None:
    both = np.array([[np.nan, 1.0]])
    with pytest.raises(CheckpointError, match=r"reference returned NaN or infinite.*image 0.*weights"):
        parity(both, both)


@pytest.mark.parametrize("engine", [np.ones((1, 3)), np.ones((2, 2)), np.ones((1, 2, 1))])
def test_another_shape_is_refused(engine) -> None:
    with pytest.raises(
        BackendError, match=r"shape .*the reference \[1, 2\].*the network that it was built from"
    ):
        parity(np.ones((1, 2)), engine)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_of_the_classes_is_named(label: int) -> None:
    with pytest.raises(ImageSetError, match=rf"image 1 .*has label {label}.*classes 0 to 1"):
        parity(np.ones((2, 2)), np.ones((2, 2)), labels=[0, label])


def test_labels_for_some_batches_only_are_a_defect() -> None:
    meter = ParityMeter()
    meter.update(np.ones((1, 2)), np.ones((1, 2)), np.array([0]))
    with pytest.raises(ValueError, match="every batch"):
        meter.update(np.ones((1, 2)), np.ones((1, 2)))


def test_a_wrong_number_of_labels_is_a_defect() -> None:
    with pytest.raises(ValueError, match="labels of shape"):
        parity(np.ones((2, 2)), np.ones((2, 2)), labels=[0])


def test_no_images_is_no_result() -> None:
    with pytest.raises(ImageSetError, match="validation has no images"):
        ParityMeter().result(image_source="validation", image_fingerprint="")


def test_an_all_zero_reference_equalled_by_the_engine_has_no_error() -> None:
    result = parity(np.zeros((2, 3)), np.zeros((2, 3)))
    assert (result.relative_rms, result.cosine) == (0.0, 1.0)


def test_an_all_zero_reference_missed_by_the_engine_has_infinite_error() -> None:
    result = parity(np.zeros((2, 3)), np.ones((2, 3)))
    assert (result.relative_rms, result.cosine) == (math.inf, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_order_and_batch_size_change_the_result_by_rounding_only(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(size=(12, 5)).astype(np.float32)
    engine = reference + random.normal(size=(12, 5)).astype(np.float32)
    whole = parity(reference, engine)
    order, meter = random.permutation(12), ParityMeter()
    for start in range(0, 12, size):
        rows = order[start : start + size]
        meter.update(reference[rows], engine[rows])
    split = meter.result(image_source="set", image_fingerprint="f")
    assert split.relative_rms == pytest.approx(whole.relative_rms, rel=1e-12)
    assert split.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert (split.top1_agreement, split.max_abs) == (whole.top1_agreement, whole.max_abs)


def test_half_precision_logits_are_summed_in_double() -> None:
    large = np.full((1, 1000), 60000.0, np.float16)
    meter = ParityMeter()
    meter.update(large, large)
    assert meter.result(image_source="s", image_fingerprint="f").cosine == pytest.approx(1.0)


def test_sqnr_of_a_tenth_of_noise_is_20_db() -> None:
    assert decibels(signal=600.0, noise=6.0) == pytest.approx(20.0)


def test_sqnr_at_its_ends() -> None:
    assert decibels(1.0, 0.0) == decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf


def test_relative_rms_of_arrays_is_that_of_the_meter() -> None:
    random = np.random.default_rng(0)
    r, e = random.normal(size=(2, 4, 3)).astype(np.float32)
    assert relative_rms(r, e) == pytest.approx(parity(r, e).relative_rms)
    assert relative_rms(np.zeros(2), np.ones(2)) == math.inf


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (292, 300), (1, 2), (5000, 10_000)])
def test_wilsons_ends_are_shares_from_which_the_found_one_is_1_96_deviations_away(
    successes: int, trials: int
) -> None:
    share = successes / trials
    for end in wilson(successes, trials):
        if 0 < end < 1:
            assert abs(share - end) / math.sqrt(end * (1 - end) / trials) == pytest.approx(1.96, abs=1e-4)
        else:
            assert end == share


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_the_interval_holds_the_share(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1


@pytest.mark.parametrize(
    ("successes", "trials", "probability"), [(0, 5, 0.5), (3, 5, 0.5), (5, 5, 0.1), (60, 1000, 0.05)]
)
def test_a_binomial_tail_is_the_sum_of_its_terms(successes: int, trials: int, probability: float) -> None:
    terms = (
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k)
        for k in range(successes, trials + 1)
    )
    assert binomial_tail(successes, trials, probability) == pytest.approx(sum(terms), rel=1e-9)


def test_a_drop_comes_with_its_probability_by_chance() -> None:
    """Ten images that only the reference gets right, two that only the engine does: McNemar's exact p is 0.0386."""
    labels = np.zeros(100, int)
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    reference = np.array([right] * 98 + [wrong] * 2)
    engine = np.array([wrong] * 10 + [right] * 90)
    meter = ParityMeter()
    meter.update(reference[:40], engine[:40], labels[:40])
    meter.update(reference[40:], engine[40:], labels[40:])
    found = meter.result(image_source="s", image_fingerprint="f")
    assert found.top1_drop_p == pytest.approx(0.038574, abs=1e-6)
    assert len(found.top1_intervals) == 2
    np.testing.assert_array_equal(meter.answers().engine, engine.argmax(1))


def test_one_logit_decides_by_its_sign() -> None:
    meter = ParityMeter("binary")
    meter.update(
        np.array([[0.1], [-2.0], [3.0], [-0.1]]),
        np.array([[-0.1], [-2.0], [3.0], [-0.1]]),
        np.array([1, 0, 1, 1]),
    )
    found = meter.result(image_source="s", image_fingerprint="f")
    assert (found.top1_agreement, found.top1_reference, found.top1_engine) == (0.75, 0.75, 0.5)
    with pytest.raises(ImageSetError, match="has label 2, but the network has classes 0 to 1"):
        meter.update(np.ones((1, 1)), np.ones((1, 1)), np.array([2]))


def test_labels_that_neither_side_gives_do_not_count_as_agreement() -> None:
    meter = ParityMeter("multilabel")
    reference = np.full((4, 80), -5.0)
    reference[:, :2] = 5.0
    silent = np.full((4, 80), -5.0)
    meter.update(reference, silent)
    assert meter.result(image_source="s", image_fingerprint="f").top1_agreement == 0.0
    meter.update(reference, reference)
    found = meter.result(image_source="s", image_fingerprint="f")
    assert found.top1_agreement == 0.5
    assert (found.top1_reference, meter.answers().reference.size) == (None, 0)
    assert meter.changes == [Change(image, (0, 1), ()) for image in range(4)]


def test_changed_images_are_counted_over_batches_and_only_the_first_are_kept() -> None:
    meter = ParityMeter()
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    meter.update(reference, reference)
    meter.update(reference, reference[:, ::-1])
    expected = [(3, (0,), (1,)), (4, (1,), (0,)), (5, (0,), (1,))]
    assert meter.changes == [Change(*change, reference_margin=1.0, engine_margin=1.0) for change in expected]
    for _ in range(MOST_CHANGES):
        meter.update(reference, reference[:, ::-1])
    assert len(meter.changes) == MOST_CHANGES


def test_the_margin_is_what_each_side_prefers_its_class_by_to_the_other_sides() -> None:
    meter = ParityMeter()
    meter.update(np.array([[3.0, 1.0, 2.5]]), np.array([[3.0, 9.0, 3.75]]))
    assert meter.changes == [Change(0, (0,), (1,), 2.0, 6.0)]
    one_logit = ParityMeter("binary")
    one_logit.update(np.array([[0.5], [1.0]]), np.array([[-2.0], [1.0]]))
    assert one_logit.changes == [Change(0, (1,), (0,), 0.5, 2.0)]


def test_feature_maps_have_an_error_and_cosines_alone() -> None:
    meter = ParityMeter("features")
    reference = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
    engine = reference.copy()
    engine[1] *= -1
    meter.update(reference, engine)
    found = meter.result(image_source="s", image_fingerprint="f")
    assert found.top1_agreement is None
    assert found.cosine == pytest.approx(1 / 3)
    assert found.worst_cosine == pytest.approx(-1.0)
    with pytest.raises(BackendError, match=r"must be \[images, classes\]"):
        ParityMeter("classes").update(reference, engine)

"""The lines that terminal and page share."""

from __future__ import annotations

import pytest

from rescompile.presenting import report_lines
from rescompile.report import Check, FloatOperations, Limits, LintResult
from tests.reports import report


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "verified"),
        ({"passed": False}, "failed"),
        ({"passed": False, "engine_executed": False}, "failed"),
        ({"engine_executed": False}, "built, not executed here"),
        ({"limits": Limits()}, "built, not judged"),
        ({"images": 0}, "built, not judged"),
    ],
)
def test_only_an_engine_that_ran_and_was_judged_is_verified(changes, verdict: str) -> None:
    assert report(**changes).verdict == verdict


def test_the_explanation_names_the_failed_checks() -> None:
    checks = (Check("agreement", "", "", passed=False), Check("relative RMS", "", "", passed=True))
    found = report_lines.explanation(report(passed=False, checks=checks))
    assert found == "1 of 2 checks failed on 300 images: agreement."


def test_the_explanation_names_broken_rules() -> None:
    assert "2 rules" in report_lines.explanation(report(passed=False, lint=LintResult(("a",), ("b", "c"))))


def test_the_explanation_claims_nothing_where_nothing_was_asked() -> None:
    assert "nothing is claimed" in report_lines.explanation(report(limits=Limits()))


def test_one_image_is_one_image() -> None:
    assert "on 1 image." in report_lines.explanation(report(images=1))


def test_target_none_is_this_machine() -> None:
    assert ("target", "this machine") in report_lines.identity(report())
    assert ("target", "sm_89") in report_lines.identity(report(target="sm_89"))


def test_unlabelled_images_have_no_top1_lines() -> None:
    labels = [label for label, _ in report_lines.measurements(report(top1_reference=None, top1_engine=None))]
    assert labels == ["images", "agreement with fp32", "relative RMS", "cosine", "largest error"]


GATES = FloatOperations("a gate, which sees one pixel", tuple(f"layer1.{index}.gate1" for index in range(6)))


def test_operations_in_floating_point_are_listed_by_reason() -> None:
    pools = FloatOperations("AveragePool", ("layer2.0.downsample.pool1",))
    assert report_lines.floating((GATES, pools))[1] == ("AveragePool", "layer2.0.downsample.pool1")
    assert report_lines.floating((GATES,))[0][1].count("gate1") == 6
    (line,) = report_lines.in_floating_point((GATES,))
    assert line[0] == "floating point"
    assert line[1].startswith("a gate, which sees one pixel: layer1.0.gate1, layer1.1.gate1, ")
    assert line[1].endswith("layer1.3.gate1 and 2 more")


def test_an_early_verdict_says_on_how_many_images_it_rests() -> None:
    early = report(images=128, image_set_size=10_000)
    assert "measured on 128 of 10000 images drawn at random" in report_lines.explanation(early)
    assert "probability of at most 0.1 %" in report_lines.explanation(early)
    assert "--validate all" in report_lines.explanation(early)
    assert dict(report_lines.measurements(early))["images"] == "128 of 10000"
    assert "errors far larger than these or labels that do not fit;" in report_lines.explanation(early)
    failed = report(
        images=128, image_set_size=10_000, passed=False, checks=(Check("a", "", "", passed=False),)
    )
    assert "0.1 %; --validate all" in report_lines.explanation(failed)
    counted = report(images=128, image_set_size=10_000, limits=Limits(min_agreement=0.9), top1_engine=None)
    assert "0.1 %; --validate all" in report_lines.explanation(counted)
    whole = report(images=128)
    assert "drawn at random" not in report_lines.explanation(whole)
    assert dict(report_lines.measurements(whole))["images"] == "128"

"""Results are judged right or wrong by one rule, and a wrong one gets no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import correctness, phase_kernels
from benchmarks.gpu.int8_network import Int8Network
from benchmarks.gpu.networks import TINY, folded, images, plain, settle
from benchmarks.gpu.training_cases import training_specs
from fused_kernels.ops import convolution
from tests.benchmarks.gpu.contexts import CPU, context_for


def test_a_wrong_result_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution.conv_moments

    def wrong(x: torch.Tensor, *rest: Any) -> Any:
        y, partials = right(x, *rest)
        if x.dtype != torch.float64:
            y[0, 0, 0, 0] += 10
        return y, partials

    monkeypatch.setattr(convolution, "conv_moments", wrong)
    spec = training_specs(TINY, torch.bfloat16)[0]
    # in truth and torch's result alike it would not be seen: ours alone is wrong
    monkeypatch.setattr(correctness.OpCase, "torchs", lambda case: case.named(right(*case.args)))
    result = phase_kernels.timed(spec, 2, context_for(tmp_path, []))
    assert result["correct"] is False
    assert "ours_ms" not in result
    assert result["worst"].startswith("result 0: ")


def test_a_result_that_is_wrong_at_the_timed_size_alone_is_found() -> None:
    case = training_specs(TINY, torch.bfloat16)[0].make(2, CPU)
    small = correctness.check(case)["results"]
    assert phase_kernels.off_at_size(case, small) is None
    ours = case.run()
    ours[0][0, 0] = 3.0
    shifted = correctness.OpCase(lambda *_: ours, case.args)
    object.__setattr__(shifted, "torchs", case.torchs)
    found = phase_kernels.off_at_size(shifted, small)
    assert found is not None
    assert found.startswith("result 0 is ")


def test_nan_on_one_side_is_infinitely_far() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert correctness.distance(nan, torch.ones(2)) == float("inf")
    assert correctness.distance(torch.ones(3), torch.ones(2)) == float("inf")


def test_other_bits_in_a_second_run_are_wrong() -> None:
    runs = iter([torch.zeros(2), torch.full((2,), 1e-7)])
    case = correctness.OpCase(lambda *_: next(runs, torch.zeros(2)), (torch.ones(1),))
    verdict = correctness.check(case)
    assert verdict["repeatable"] is False
    assert verdict["correct"] is False


def test_an_int8_result_may_differ_by_one_and_no_more() -> None:
    ours = torch.tensor([1, 2, 3, 5], dtype=torch.int8)
    for off, right in ((1, True), (2, False)):
        expected = {"y": ours + torch.tensor([0, 0, 0, off], dtype=torch.int8)}
        verdict = correctness.judged({"y": ours}, expected, expected)
        assert verdict["correct"] is right
        assert verdict["results"]["y"]["exact"] == 0.75


def test_the_int8_network_answers_like_the_one_it_was_made_from() -> None:
    x = images(TINY, 4, CPU)
    network = settle(plain(TINY, CPU), x)
    with torch.no_grad():
        expected = network(x)
        quantized = Int8Network(folded(network), x)
        found = quantized(quantized.image(x))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.98

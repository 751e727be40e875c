"""Batch norm's small vectors, against NumPy in float64 and torch's own batch norm."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from fused_kernels.launch import recording
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import statistics
from fused_kernels.ops.splits import SplitSum, launch_sum
from fused_kernels.ops.statistics import MOST_TILES, Finalized, NormGradient
from tests.fused_kernels import checks, ground_truth
from tests.fused_kernels.checks import partials_of
from tests.fused_kernels.conftest import activation, kernels, normal, reference
from tests.fused_kernels.tolerances import SUM, assert_close, assert_variance

Implementation = Callable[[], AbstractContextManager[None]]
both = pytest.mark.parametrize("implementation", [kernels, reference])


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37])
@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1])
def test_finalize_is_torchs_batch_norm(momentum: float, eps: float) -> None:
    y = activation(2, 20, 5, 5, mean=3.0, std=2.0)
    checks.check_finalize(y, partials_of(y, 32), momentum=momentum, eps=eps)


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 17])
def test_channels_around_the_end_of_a_program(channels: int) -> None:
    y = activation(2, channels, 3, 3)
    checks.check_finalize(y, partials_of(y, 4))
    checks.check_merge(y, partials_of(y, 4))
    checks.check_frozen(channels)
    checks.check_sums(2, 3, channels)


@pytest.mark.parametrize("tiles", [1, 64, 65, 511, 512, 513, 1100])
def test_tiles_around_the_end_of_a_block(tiles: int) -> None:
    y = activation(1, 3, 1, 2 * tiles - 1)
    partials = partials_of(y, 2)
    assert partials.tiles == tiles
    if tiles > 1:
        checks.check_finalize(y, partials)
        checks.check_merge(y, partials)
    checks.check_sums(3, tiles, 3)


# groups have 128 tiles; the last one has a single tile, all but one, or all of them
@pytest.mark.parametrize(
    ("tiles", "most"),
    [(MOST_TILES, MOST_TILES), (MOST_TILES + 1, MOST_TILES), (383, 256), (384, 256), (385, 256)],
)
def test_thousands_of_tiles_are_added_up_in_groups(
    tiles: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MOST_TILES", most)
    y = activation(1, 9, 1, 2 * tiles - 1, mean=100.0)
    with recording() as launches:
        checks.check_finalize(y, partials_of(y, 2))
    assert len(launches) == (1 if tiles == most else 2)
    checks.check_merge(y, partials_of(y, 2))
    checks.check_sums(3, tiles, 9)
    vectors, sums = checks.Case(c=33).vectors(), Partials(normal(2, tiles, 33), 32, 32 * tiles)
    (made,) = statistics.norm_gradients(sums, [(vectors, False)])
    assert_gradients(made, sums, 1, vectors)


@both
@pytest.mark.parametrize("mean_over_std", [100.0, 1000.0])
@pytest.mark.parametrize("std", [1.0, 1e-3])
def test_variance_of_values_far_from_zero(
    implementation: Implementation, mean_over_std: float, std: float
) -> None:
    y = activation(4, 8, 16, 8, mean=mean_over_std * std, std=std)
    with implementation():
        checks.check_merge(y, partials_of(y, 128))
        checks.check_merge(y, partials_of(y, y.numel()))
        checks.check_merge(y.bfloat16(), partials_of(y.bfloat16(), 128))  # rows in fp32
        _, new = statistics.finalize(
            partials_of(y, 128), torch.ones(8), torch.zeros(8), 1e-5, (torch.zeros(8), torch.ones(8)), 1.0
        )
    assert new is not None
    assert_variance("running variance", new[1], ground_truth.moments(y)[1] * 512 / 511)


@both
def test_unequal_parts_make_the_whole(implementation: Implementation) -> None:
    y = activation(1, 9, 8, 16, mean=5.0)
    parts = [y[:, :, :1], y[:, :, 1:2, :1], y[:, :, 1:2, 1:], y[:, :, 2:]]
    counts = [part.numel() // 9 for part in parts]
    assert counts == [16, 1, 15, 96]
    with implementation():
        merged = [statistics.merge(partials_of(part, 7)) for part in parts]
        gathered = Partials(torch.stack(merged, dim=1), 0, 16, torch.tensor(counts, dtype=torch.float64))
        checks.check_finalize(y, gathered)


@both
@pytest.mark.parametrize("means", [(100.0, 101.0, 99.0), (1000.0, 1001.0, 999.0)])
def test_parts_far_from_zero_keep_the_variance(
    implementation: Implementation, means: tuple[float, ...]
) -> None:
    parts = [activation(1, 8, 16, 8, mean=mean) for mean in means]
    counts = torch.full((3,), 128.0, dtype=torch.float64)
    with implementation():
        merged = [statistics.merge(partials_of(part, 32)) for part in parts]
        gathered = Partials(torch.stack(merged, dim=1), 0, 128, counts)
        vectors, _ = statistics.finalize(gathered, torch.ones(8), torch.zeros(8), 0.0, None, 0.1)
    variance = vectors[1].double().pow(-2).float()
    assert_variance("variance", variance, ground_truth.moments(torch.cat(parts))[1])


@both
def test_running_statistics_follow_torchs_over_steps(implementation: Implementation) -> None:
    norm = torch.nn.BatchNorm2d(5, momentum=0.3).train()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    running = torch.stack([norm.running_mean, norm.running_var])
    for step in range(5):
        y = activation(2, 5, 3, 3, mean=float(step), std=step + 0.5)
        norm(y)
        with implementation():
            _, new = statistics.finalize(
                partials_of(y, 4), torch.ones(5), torch.zeros(5), norm.eps, (running[0], running[1]), 0.3
            )
        assert new is not None
        running = new
    torch.testing.assert_close(running[0], norm.running_mean, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(running[1], norm.running_var, rtol=2e-6, atol=1e-7)


@both
def test_untracked_statistics_give_vectors_alone(implementation: Implementation) -> None:
    y = activation(2, 5, 3, 3)
    with implementation():
        vectors, new = statistics.finalize(partials_of(y, 4), torch.ones(5), torch.zeros(5), 1e-5, None, 0.1)
    assert new is None
    mean, variance = ground_truth.moments(y)
    assert_close("scale", vectors[2], (variance + 1e-5).rsqrt(), SUM)
    assert_close("shift", vectors[3], -mean * (variance + 1e-5).rsqrt(), SUM)


@both
@pytest.mark.parametrize("value", [0.0, 3.0, 12345.678])
def test_a_constant_has_no_variance(implementation: Implementation, value: float) -> None:
    y = torch.full((2, 3, 5, 7), value)
    with implementation():
        vectors, new = statistics.finalize(
            partials_of(y, 16), torch.ones(3), torch.zeros(3), 1e-5, (torch.zeros(3), torch.ones(3)), 1.0
        )
    assert new is not None
    assert_close("mean", vectors[0], y[0, :, 0, 0].double(), SUM)
    assert_close("invstd", vectors[1], torch.full((3,), 1e-5, dtype=torch.float64).rsqrt(), SUM)
    assert (new[1] >= 0).all()
    assert new[1].max() < 1e-6


@both
def test_one_row_has_finite_statistics(implementation: Implementation) -> None:
    y = activation(1, 3, 1, 1)
    with implementation():
        vectors, new = statistics.finalize(
            partials_of(y, 32), torch.ones(3), torch.zeros(3), 1e-5, (torch.zeros(3), torch.ones(3)), 0.5
        )
    assert new is not None
    assert vectors.isfinite().all()
    assert_close("running variance", new[1], torch.full((3,), 0.5, dtype=torch.float64), SUM)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_frozen_is_torchs_eval_batch_norm(eps: float) -> None:
    checks.check_frozen(130, eps=eps)


def test_sums_of_one_and_of_many_kinds() -> None:
    for kinds in (1, 2, 3):
        checks.check_sums(kinds, 5, 20)


def gradient_of(kinds: int, tiles: int, count: int) -> Partials:
    return Partials(normal(kinds, tiles, 130), 32, count)


@both
def test_frozen_coefficients_are_the_scale_alone(implementation: Implementation) -> None:
    vectors = checks.Case(c=130).vectors()
    with implementation():
        (made,) = statistics.norm_gradients(gradient_of(2, 1, 7), [(vectors, True)])
    assert torch.equal(made.coefficients[0], vectors[2])
    assert made.coefficients[1:].count_nonzero() == 0


def assert_gradients(made: NormGradient, partials: Partials, kind: int, vectors: Tensor) -> None:
    sum_g, sum_gy = partials.rows.double().sum(1)[[0, kind]]
    _, invstd, scale, _ = vectors.double()
    truth = [scale, -scale * invstd**2 * sum_gy / partials.count, -scale * sum_g / partials.count]
    found = [*made.coefficients, made.dgamma, made.dbeta]
    for name, row, expected in zip("abcgb", found, [*truth, sum_gy * invstd, sum_g], strict=True):
        assert_close(name, row, expected, SUM)


@both
@pytest.mark.parametrize(("tiles", "count"), [(1, 1), (1, 2), (600, 50)])
def test_gradients_of_one_and_of_two_layers(implementation: Implementation, tiles: int, count: int) -> None:
    first, second, partials = *(checks.Case(c=130).vectors() for _ in range(2)), gradient_of(3, tiles, count)
    with implementation():
        both = statistics.norm_gradients(partials, [(first, False), (second, False)])
        (alone,) = statistics.norm_gradients(partials, [(first, False)])
    assert_gradients(both[0], partials, 1, first)
    assert_gradients(both[1], partials, 2, second)
    assert all(torch.equal(a, b) for a, b in zip(alone, both[0], strict=True))


@pytest.mark.parametrize("splits", [1, 2, 31, 32, 33, 70])
def test_split_sums_of_any_number_of_parts(splits: int) -> None:
    parts = normal(splits, 130)
    dw = torch.full_like(parts[0], float("nan"))
    launch_sum(SplitSum(parts, dw))
    assert_close("dw", dw, parts.double().sum(0), SUM, scale=parts.double().abs().sum(0))


@both
@pytest.mark.parametrize("pending", [1, 2, 3])
def test_split_sums_ride_along(implementation: Implementation, pending: int) -> None:
    vectors, partials = checks.Case(c=130).vectors(), gradient_of(2, 3, 9)
    parts = [normal(3, 700 + index) for index in range(pending)]
    sums = [SplitSum(part, torch.full_like(part[0], float("nan"))) for part in parts]
    with implementation():
        (made,) = statistics.norm_gradients(partials, [(vectors, False)], sums)
    assert_gradients(made, partials, 1, vectors)
    for part, split_sum in zip(parts, sums, strict=True):
        assert torch.equal(split_sum.dw, part[0] + part[1] + part[2])


@both
def test_two_layers_are_finalized_as_each_alone(implementation: Implementation) -> None:
    layers = []
    for per_tile in (2, 5):
        y = activation(3, 20, 9, 9, mean=10.0)
        running = None if per_tile == 5 else (normal(20), normal(20).abs())
        layers.append(Finalized(partials_of(y, per_tile), normal(20), normal(20), 1e-5, running, 0.1))
    with implementation():
        both = statistics.finalize_all(layers)
        alone = [statistics.finalize_all([layer])[0] for layer in layers]
    for (vectors, new), (expected, expected_new) in zip(both, alone, strict=True):
        torch.testing.assert_close(vectors, expected, rtol=1e-6, atol=0.0)
        assert (new is None) == (expected_new is None)
    assert both[0][1] is not None
    assert alone[0][1] is not None
    torch.testing.assert_close(both[0][1], alone[0][1], rtol=1e-6, atol=0.0)


def test_the_same_input_gives_the_same_bits() -> None:
    y = activation(3, 20, 9, 9, mean=10.0)
    running = (normal(20), normal(20).abs())
    first, second = (
        statistics.finalize(partials_of(y, 2), torch.ones(20), torch.zeros(20), 1e-5, running, 0.1)
        for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert first[1] is not None
    assert second[1] is not None
    assert torch.equal(first[1], second[1])

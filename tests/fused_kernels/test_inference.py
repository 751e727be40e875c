"""Convolutions with folded batch norm, against float64; the int8 forms have a file of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.choice import REFERENCE, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.inference import conv_bias, fold
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile
from tests.fused_kernels.checks import Case, assert_activation
from tests.fused_kernels.conftest import activation, kernels, normal, reference, reseed, tiles, weight
from tests.fused_kernels.ground_truth import stored
from tests.fused_kernels.launches import bytes_read, bytes_written
from tests.fused_kernels.strategies import FUZZ, tiled_cases
from tests.fused_kernels.tolerances import SUM, assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPILOGUES = ["bias", "bias_relu", "bias_residual_relu"]
POINTWISE = Conv(1, 1)


def truth_of(
    x: Tensor, w: Tensor, bias: Tensor, case: Case, *, relu: bool, residual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """float64, or what eager PyTorch stores in ``dtype`` after each of its operations."""
    v = stored(F.conv2d(x.double(), w.double(), bias.double(), case.stride, case.padding), dtype)
    if residual is not None:
        v = stored(v + residual.double(), dtype)
    return v.relu() if relu else v


def check_conv_bias(case: Case, epilogue: str) -> None:
    x, w, bias = case.x(), case.weight(), normal(case.k).to(case.wide)
    arguments: dict[str, Any] = {
        "relu": epilogue != "bias",
        "residual": case.dy() if "residual" in epilogue else None,
    }
    with recording() as launches:
        y = conv_bias(x, w, bias, case.conv, **arguments)
    truth, torchs = (
        truth_of(x, w, bias, case, dtype=dtype, **arguments) for dtype in (torch.float64, case.dtype)
    )
    assert_activation("y", y, truth, torchs, case)
    chosen = [launch.arguments["EPILOGUE"].name for launch in launches]
    assert chosen in ([], [f"epilogues.{epilogue}"]), "one launch, with the epilogue that was asked for"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_each_epilogue_in_each_dtype(dtype: torch.dtype, epilogue: str, small_tiles: Tile) -> None:
    check_conv_bias(Case(k=40, dtype=dtype), epilogue)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_each_reference_in_each_dtype(dtype: torch.dtype, epilogue: str) -> None:
    with reference():
        check_conv_bias(Case(stride=2, dtype=dtype), epilogue)


@FUZZ
@given(tiled_cases("fprop"), st.sampled_from(EPILOGUES), st.integers(0, 2**16))
def test_any_geometry_and_tile(made: tuple[Case, Tile], epilogue: str, seed: int) -> None:
    reseed(seed)
    with tiles(made[1]):
        check_conv_bias(made[0], epilogue)


@pytest.mark.parametrize("size", [31, 32, 33, 64, 65])
def test_sizes_around_a_tile(size: int, small_tiles: Tile) -> None:
    check_conv_bias(Case(1, 1, padding=0, n=1, c=size, k=size, h=1, w=size), "bias_residual_relu")


def test_float64_runs_in_plain_pytorch_even_where_kernels_run() -> None:
    check_conv_bias(Case(dtype=torch.float64), "bias_residual_relu")


def test_a_table_may_send_a_shape_to_the_reference() -> None:
    with choosing(lambda _: REFERENCE), recording() as launches:
        check_conv_bias(Case(), "bias_relu")
    assert not launches


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_the_tuning_table_is_asked_for_this_very_problem(epilogue: str) -> None:
    asked: list[Problem] = []

    def choose(problem: Problem) -> None:
        asked.append(problem)

    case = Case(3, 3, stride=2, n=1, c=8, k=4, h=5, w=3)
    with choosing(choose):
        check_conv_bias(case, epilogue)
    assert asked == [Problem("fprop", torch.float32, 1, 5, 3, 8, 4, case.conv, "identity", epilogue)]


def test_one_kernel_reads_each_operand_once_and_writes_only_its_result() -> None:
    with torch.device("meta"), recording() as launches:
        x, w, y = torch.empty(2, 16, 6, 6), torch.empty(32, 16, 1, 1), torch.empty(2, 32, 6, 6)
        conv_bias(x, w, torch.empty(32), POINTWISE, relu=True, residual=y)
    (launch,) = launches
    assert bytes_read(launch) == 4 * (x.numel() + w.numel() + 32 + y.numel())
    assert bytes_written(launch) == 4 * y.numel()


def test_operands_in_nchw_memory_are_taken_too(small_tiles: Tile) -> None:
    x, w, residual = normal(2, 20, 5, 4), normal(24, 20, 3, 3), normal(2, 24, 5, 4)
    y = conv_bias(x, w, torch.zeros(24), Conv(3, 3, 1, 1), relu=True, residual=residual)
    assert_close("y", y, F.relu(F.conv2d(x.double(), w.double(), padding=1) + residual.double()))


@pytest.mark.parametrize("context", [kernels, reference])
def test_sixteen_bits_are_rounded_once(context: Any, small_tiles: Tile) -> None:
    """Sums near 1,000 lose their fraction in fp16; a bias that takes the 1,000 away must find it still there."""
    x, w = torch.ones(1, 16, 2, 2).half(), torch.full((16, 16, 1, 1), 62.5).half()
    w[:, 0] += 0.03125
    with context():
        y = conv_bias(x, w, torch.full((16,), -1000.0), POINTWISE, relu=True)
    assert (y == 0.03125).all()


def test_a_nan_stays_a_nan_through_the_relu(small_tiles: Tile) -> None:
    x = activation(1, 16, 2, 2)
    x[0, 3, 1, 1] = float("nan")
    for context in (recording(), reference()):
        with context:
            y = conv_bias(x, weight(16, 16, 1, 1), torch.zeros(16), POINTWISE, relu=True)
        assert y[0, :, 1, 1].isnan().all()
        assert y.isnan().sum() == 16


def test_an_empty_batch_gives_an_empty_result() -> None:
    y = conv_bias(torch.empty(0, 16, 3, 3), weight(8, 16, 3, 3), torch.zeros(8), Conv(3, 3, 2, 1), relu=True)
    assert y.shape == (0, 8, 2, 2)


GOOD: dict[str, Any] = {
    "x": torch.zeros(1, 16, 4, 4),
    "w": torch.zeros(8, 16, 1, 1),
    "bias": torch.zeros(8),
    "conv": POINTWISE,
    "relu": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(16, 4, 4)}, r"x \(16, 4, 4\) and w \(8, 16, 1, 1\) do not fit"),
        ({"w": torch.zeros(8, 15, 1, 1)}, "do not fit a 1x1 convolution"),
        ({"conv": Conv(3, 3)}, "do not fit a 3x3 convolution"),
        ({"w": torch.zeros(0, 16, 1, 1)}, "do not fit"),
        ({"w": torch.zeros(8, 16, 1, 1).half()}, "x is torch.float32 and w is torch.float16"),
        ({"bias": torch.zeros(7)}, r"bias is torch.float32 \(7,\)"),
        ({"bias": torch.zeros(8).half()}, r"it must be torch.float32 \(8,\)"),
        ({"bias": torch.zeros(16)[::2]}, "contiguous"),
        ({"residual": torch.zeros(1, 8, 4, 3)}, r"gives torch.float32 \(1, 8, 4, 4\)"),
        ({"residual": torch.zeros(1, 8, 4, 4).half()}, "the residual is torch.float16"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        conv_bias(**{**GOOD, **change})


def test_a_residual_without_a_relu_is_refused() -> None:
    with pytest.raises(Unsupported, match="a residual is added before a ReLU: pass relu=True"):
        conv_bias(**{**GOOD, "relu": False, "residual": torch.zeros(1, 8, 4, 4)})


def test_integers_are_refused() -> None:
    with pytest.raises(Unsupported, match="conv_bias takes float32, float16 or bfloat16, not int8"):
        conv_bias(**{**GOOD, "x": torch.zeros(1, 16, 4, 4, dtype=torch.int8)})


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_folding_gives_what_convolution_and_batch_norm_give(affine: bool, dtype: torch.dtype) -> None:
    norm = torch.nn.BatchNorm2d(24, eps=1e-3, affine=affine, dtype=torch.float64).eval()
    for vector in norm.state_dict().values():
        if vector.ndim:
            vector.copy_(normal(24).abs() + 0.01)
    x, w = normal(2, 8, 4, 4).double(), weight(24, 8, 3, 3, dtype)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded, bias = fold(w, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    assert folded.dtype == bias.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    result = F.conv2d(x, folded.double(), bias.double()).detach()
    assert_close("conv + bias", result.to(folded.dtype), norm(F.conv2d(x, w.double())).detach(), SUM)


def test_folding_rounds_once() -> None:
    """Folding in fp32 would lose digits of a variance near eps and of a mean near beta / scale."""
    gamma, beta, mean, var = (torch.tensor([v]) for v in (3.1, 980.7, 1000.3, 1e-6))
    w, bias = fold(torch.tensor([[[[0.7]]]]), gamma, beta, mean, var, 1e-5)
    scale = gamma.double() / (var.double() + 1e-5) ** 0.5
    assert w.item() == (torch.tensor(0.7).double() * scale).float().item()
    assert bias.item() == (beta.double() - mean.double() * scale).float().item()

"""An application's image to a stem's operand: kernel and reference against NumPy, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_kernels.choice import REFERENCE, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import stem
from fused_kernels.ops.image import Take, take
from fused_kernels.problem import Problem
from tests.fused_kernels.conftest import kernels, normal, reference, weight

CONV = Conv(3, 3, padding=1)
FACTOR, OFFSET = torch.tensor([0.017, 0.0175, 0.0174]), torch.tensor([-2.1, -2.0, -1.8])
UNDO_FACTOR, UNDO_OFFSET = 1 / FACTOR, -OFFSET / FACTOR - 128
EXACT = Take(FACTOR, OFFSET, 1.0, undo_factor=UNDO_FACTOR, undo_offset=UNDO_OFFSET, margin=1)
"""Pixels, normalized, padded and made pixels again: a scale of 1 has every one of them."""
BOTH = pytest.mark.parametrize("implementation", [kernels, reference], ids=["kernel", "reference"])


def expected(image: NDArray[np.generic], how: Take, dtype: torch.dtype) -> NDArray[np.generic]:
    """[N, C, H, W]: float32 arithmetic, each step rounded to ``rest``."""
    rest = np.float16 if how.rest == torch.float16 else np.float32
    v = image.astype(rest).astype(np.float32)
    if how.factor is not None and how.offset is not None:
        v = (v * how.factor.numpy()[:, None, None]).astype(rest).astype(np.float32)
        v = (v + how.offset.numpy()[:, None, None]).astype(rest).astype(np.float32)
    v = np.pad(v, [(0, 0)] * (v.ndim - 2) + [(how.margin, how.margin)] * 2)
    if how.undo_factor is not None and how.undo_offset is not None:
        v = (v * how.undo_factor.numpy()[:, None, None]).astype(rest).astype(np.float32)
        v = (v + how.undo_offset.numpy()[:, None, None]).astype(rest).astype(np.float32)
    if how.scale is None:
        return v.astype(np.float16 if dtype == torch.float16 else np.float32)
    return np.clip(np.rint(v / np.float32(how.scale)), -128, 127).astype(np.int8)


def pixels(*, layout: str = "NHWC") -> Tensor:
    """uint8 [2, 3, 4, 5] of every size, as a view of NHWC memory or in its own."""
    values = torch.randint(0, 256, (2, 4, 5, 3)).to(torch.uint8)
    return values.permute(0, 3, 1, 2) if layout == "NHWC" else values.permute(0, 3, 1, 2).contiguous()


@BOTH
@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        (torch.int8, Take(FACTOR, OFFSET, scale=0.02)),
        (torch.int8, Take(FACTOR, OFFSET, scale=0.02, rest=torch.float16)),
        (torch.float16, Take(FACTOR, OFFSET, rest=torch.float16)),
        (torch.float32, Take(FACTOR, OFFSET)),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels(implementation: type, dtype: torch.dtype, how: Take, layout: str) -> None:
    image = pixels(layout=layout)
    with implementation():
        packed = take(image, CONV, dtype, how)
    inner = packed[:, :, 1:6, :3].permute(0, 3, 1, 2)
    np.testing.assert_array_equal(inner.numpy(), expected(image.numpy(), how, dtype))
    padding = packed.clone()
    padding[:, :, 1:6, :3] = 0
    assert not padding.any()


@BOTH
def test_a_float_image_is_quantized_with_ties_to_even_and_saturated(implementation: type) -> None:
    # the quotients are exact: -200, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 200
    values = torch.tensor([-200.0, -1.5, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 200.0]) * 0.25
    with implementation():
        packed = take(values[None, None, None], CONV, torch.int8, Take(scale=0.25))
    assert packed[0, 0, 1:10, 0].tolist() == [-128, -2, 0, 0, 2, 2, 126, 127, 127]


@BOTH
def test_the_quotient_is_rounded_once(implementation: type) -> None:
    # scales with an inexact reciprocal, and images a few steps of fp32 around every tie
    scale = np.float32(0.0123291015625)
    ties = (np.arange(-128, 128, dtype=np.float32) + np.float32(0.5)) * scale
    image = np.stack([np.nextafter(ties, np.float32(-9)), ties, np.nextafter(ties, np.float32(9))])
    how = Take(scale=float(scale))
    with implementation():
        packed = take(torch.from_numpy(image)[None, None], CONV, torch.int8, how)
    np.testing.assert_array_equal(packed[0, :, 1:257, 0].numpy(), expected(image, how, torch.int8))


@BOTH
@pytest.mark.parametrize("pool", [True, False])
def test_a_stem_takes_pixels_as_it_takes_what_they_become(implementation: type, pool: bool) -> None:
    how = Take(FACTOR, OFFSET, scale=0.02)
    image, w = pixels(), torch.randint(-128, 128, (8, 3, 3, 3)).to(torch.int8)
    scale, bias = torch.rand(8) * 1e-2, normal(8)
    quantized = torch.from_numpy(expected(image.numpy(), how, torch.int8))
    with implementation():
        direct = stem.stem_inference(image, w, bias, CONV, pool=pool, scale=scale, take=how)
        apart = stem.stem_inference(quantized, w, bias, CONV, pool=pool, scale=scale)
    assert torch.equal(direct, apart)


@BOTH
@pytest.mark.parametrize("given", ["pixels", "floats"])
@pytest.mark.parametrize("rest", [torch.float32, torch.float16])
def test_a_stem_that_reads_pixels_pads_what_is_normalized(
    implementation: type, given: str, rest: torch.dtype
) -> None:
    image, how = pixels(), replace(EXACT, rest=rest)
    if given == "floats":
        image, how = normal(2, 3, 4, 5), replace(how, factor=None, offset=None)
    with implementation():
        packed = take(image, Conv(3, 3), torch.int8, how)
    np.testing.assert_array_equal(
        packed[:, :, :7, :3].permute(0, 3, 1, 2).numpy(), expected(image.numpy(), how, torch.int8)
    )
    assert packed.shape[:2] == (2, 6)
    assert not packed[..., 3].any()
    if given == "pixels" and rest == torch.float32:
        assert torch.equal(packed[:, 1:5, 1:6, :3], (image.permute(0, 2, 3, 1).int() - 128).to(torch.int8))
        border = (-OFFSET / FACTOR).round() - 128
        assert packed[0, 0, 0, :3].tolist() == packed[1, 5, 6, :3].tolist() == border.tolist()


@BOTH
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [True, False])
def test_a_stem_convolves_the_margin_in_place_of_padding(
    implementation: type, pool: bool, stride: int
) -> None:
    image, w = pixels(), torch.randint(-128, 128, (8, 3, 3, 3)).to(torch.int8)
    scale, bias, conv = torch.rand(8) * 1e-3, normal(8), Conv(3, 3, stride)
    quantized = torch.from_numpy(expected(image.numpy(), EXACT, torch.int8))
    with implementation():
        direct = stem.stem_inference(image, w, bias, conv, pool=pool, scale=scale, take=EXACT)
        apart = stem.stem_inference(quantized, w, bias, conv, pool=pool, scale=scale)
    assert torch.equal(direct, apart)


def test_a_margin_is_padding_to_whoever_chooses_the_tile() -> None:
    """A tuning table's entry for the network's own convolution must fit it."""
    asked: list[Problem] = []

    def choice(problem: Problem) -> str:
        asked.append(problem)
        return REFERENCE

    w, vector = torch.zeros(8, 3, 3, 3, dtype=torch.int8), torch.ones(8)
    with choosing(choice):
        for conv, how in ((Conv(3, 3), EXACT), (Conv(3, 3, padding=1), replace(EXACT, margin=0))):
            stem.stem_inference(pixels(), w, vector, conv, scale=vector, take=how)
    assert asked[0] == asked[1]


def test_a_stem_with_pixels_is_two_launches() -> None:
    with recording() as launches:
        stem.stem_inference(pixels(), weight(8, 3, 3, 3), normal(8), CONV, take=Take(FACTOR, OFFSET))
    assert [launch.kernel for launch in launches] == ["image.take_kernel", "stem.conv_pool_kernel"]


@pytest.mark.parametrize(
    ("image", "dtype", "how", "error", "words"),
    [
        (torch.zeros(3, 4, 4), torch.float32, Take(), ShapeError, "1 to 4 channels"),
        (torch.zeros(1, 5, 4, 4), torch.float32, Take(), ShapeError, "1 to 4 channels"),
        (torch.zeros(1, 3, 4, 4).int(), torch.float32, Take(), Unsupported, "floating point or uint8"),
        (torch.zeros(1, 3, 4, 4), torch.int8, Take(), Unsupported, "a scale with int8"),
        (torch.zeros(1, 3, 4, 4), torch.float32, Take(scale=1.0), Unsupported, "a scale with int8"),
        (torch.zeros(1, 3, 4, 4), torch.float32, Take(rest=torch.int8), Unsupported, "float32 or float16"),
        (torch.zeros(1, 3, 4, 4), torch.float32, Take(factor=FACTOR), ShapeError, "or neither"),
        (torch.zeros(1, 1, 4, 4), torch.float32, Take(FACTOR, OFFSET), ShapeError, "factor is"),
        (
            torch.zeros(1, 3, 4, 4),
            torch.float32,
            Take(undo_offset=OFFSET),
            ShapeError,
            "undo_offset, or neither",
        ),
        (torch.zeros(1, 3, 4, 4), torch.float32, Take(margin=-1), ShapeError, "a margin of -1"),
        (
            torch.zeros(1, 1, 4, 4),
            torch.float32,
            Take(undo_factor=FACTOR, undo_offset=OFFSET),
            ShapeError,
            "undo_factor is",
        ),
        (torch.zeros(1, 3, 4, 4), torch.float32, Take(FACTOR, OFFSET.half()), ShapeError, "offset is"),
    ],
)
def test_what_does_not_fit_is_refused(
    image: Tensor, dtype: torch.dtype, how: Take, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        take(image, CONV, dtype, how)

"""The chain 3x3 -> 1x1 + shortcut -> next 1x1: floats against float64, int8 bit for bit against NumPy."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.candidates import candidates
from fused_kernels.choice import REFERENCE, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.gpus import HOPPER, SMALLEST
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.chain import Folded, chain, chain_fits
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile
from tests.fused_kernels import quantized
from tests.fused_kernels.conftest import activation, kernels, normal, reference, reseed, tiles, weight
from tests.fused_kernels.ground_truth import stored
from tests.fused_kernels.launches import bytes_read, bytes_written
from tests.fused_kernels.quantized import Layer, assert_same_bits, random_int8, random_layer
from tests.fused_kernels.strategies import FUZZ
from tests.fused_kernels.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = Tile(32, 64, 32)
"""Several tiles of pixels and of columns; a step of the 3x3 is half of a width of 64."""
Relus = tuple[bool, bool, bool]
RELUS: Relus = (True, True, True)
"""Whether each convolution has its ReLU."""


class Shapes(NamedTuple):
    """x [n, width, h, w], z [n, expanded, p, q], next [n, next, p, q] or none."""

    width: int = 32
    expanded: int = 96
    following: int | None = 40
    stride: int = 1
    n: int = 2
    h: int = 5
    w: int = 4

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """[K, C, R] of each convolution."""
        shapes = [(self.width, self.width, 3), (self.expanded, self.width, 1)]
        return shapes if self.following is None else [*shapes, (self.following, self.expanded, 1)]

    @property
    def output(self) -> tuple[int, int, int, int]:
        return self.n, self.expanded, -(-self.h // self.stride), -(-self.w // self.stride)


def convolved(
    x: Tensor, w: Tensor, bias: Tensor, dtype: torch.dtype, residual: Tensor | None = None, **window: int
) -> Tensor:
    """relu(conv + bias + residual) in float64, or as eager PyTorch stores it in ``dtype``."""
    v = stored(F.conv2d(x.double(), w.double(), bias.double(), **window), dtype)
    return (v if residual is None else stored(v + residual.double(), dtype)).relu()


def check_chain(shapes: Shapes, dtype: torch.dtype, tile: Tile | None = SMALL) -> None:
    x = activation(shapes.n, shapes.width, shapes.h, shapes.w, dtype).relu()
    residual = activation(*shapes.output, dtype)
    vectors = torch.float64 if dtype == torch.float64 else torch.float32
    layers = [Folded(weight(k, c, r, r, dtype), normal(k).to(vectors)) for k, c, r in shapes.layers]
    with nullcontext() if tile is None else tiles(tile):
        z, following = chain(x, layers[0], layers[1], residual, *layers[2:], stride=shapes.stride)
    truths, torchs = (chained(x, layers, residual, shapes.stride, d) for d in (torch.float64, dtype))
    assert z.dtype == dtype
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert_close("z", z, truths[0], torchs=torchs[0])
    assert (following is None) == (shapes.following is None)
    if following is not None:
        assert following.dtype == dtype
        assert following.is_contiguous(memory_format=torch.channels_last)
        assert_close("next", following, truths[1], torchs=torchs[1])


def chained(
    x: Tensor, layers: list[Folded], residual: Tensor, stride: int, dtype: torch.dtype
) -> list[Tensor]:
    """z, and the next block's start where there is one."""
    h = convolved(x, layers[0].w, layers[0].bias, dtype, stride=stride, padding=1)
    z = convolved(h, layers[1].w, layers[1].bias, dtype, residual)
    return [z, *(convolved(z, layer.w, layer.bias, dtype) for layer in layers[2:])]


def check_chain_int8(shapes: Shapes, tile: Tile | None = SMALL, relu: Relus = RELUS) -> None:
    x, residual = random_int8(shapes.n, shapes.width, shapes.h, shapes.w, low=0), random_int8(*shapes.output)
    layers = [random_layer(k, c, r, r, spread=100.0) for k, c, r in shapes.layers]
    folded = [
        Folded(layer.w, layer.bias, layer.scale, relu=each) for layer, each in zip(layers, relu, strict=False)
    ]
    with nullcontext() if tile is None else tiles(tile):
        z, following = chain(
            x, folded[0], folded[1], residual, *folded[2:], stride=shapes.stride, residual_scale=0.37
        )
    truth = chained_int8(x, layers, residual, shapes.stride, relu)
    assert_same_bits("z", z, truth[0])
    assert (following is None) == (shapes.following is None)
    if following is not None:
        assert_same_bits("next", following, truth[1])


def chained_int8(
    x: Tensor, layers: list[Layer], residual: Tensor, stride: int, relu: Relus = RELUS
) -> list[Tensor]:
    """``chained`` in int8, with residual_scale 0.37."""
    h = quantized.conv_int8(x, layers[0], (stride, 1), relu=relu[0])
    z = quantized.conv_int8(h, layers[1], (1, 0), relu=relu[1], residual=residual, residual_scale=0.37)
    return [z, *(quantized.conv_int8(z, layer, (1, 0), relu=relu[2]) for layer in layers[2:])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("following", [None, 40])
def test_every_dtype_stride_and_ending(dtype: torch.dtype, stride: int, following: int | None) -> None:
    check_chain(Shapes(stride=stride, following=following), dtype)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("following", [None, 40])
def test_int8_of_every_stride_and_ending(stride: int, following: int | None) -> None:
    check_chain_int8(Shapes(stride=stride, following=following))


@pytest.mark.parametrize("context", [kernels, reference])
@pytest.mark.parametrize("relu", [(False, False, True), (False, True, True), (True, False, False)])
def test_int8_saturates_at_the_lowest_integer_where_there_is_no_relu(context: Any, relu: Relus) -> None:
    with context():
        check_chain_int8(Shapes(), relu=relu)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, *DTYPES], ids=str)
@pytest.mark.parametrize("following", [None, 40])
def test_references_of_every_dtype(dtype: torch.dtype, following: int | None) -> None:
    shapes = Shapes(stride=2, following=following)
    with reference():
        check_chain_int8(shapes) if dtype == torch.int8 else check_chain(shapes, dtype)


SHAPES = st.builds(
    Shapes,
    width=st.sampled_from([32, 64]),
    expanded=st.integers(1, 100),
    following=st.none() | st.integers(1, 40),
    stride=st.integers(1, 2),
    n=st.integers(1, 2),
    h=st.integers(1, 5),
    w=st.integers(2, 5),
)
TILES = st.builds(
    Tile,
    m=st.sampled_from([16, 32]),
    n=st.sampled_from([32, 128]),
    k=st.sampled_from([32, 64]),
    flat=st.booleans(),
)


@FUZZ
@given(
    SHAPES,
    TILES,
    st.sampled_from([*DTYPES, torch.int8]),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 2**16),
)
def test_any_shape_and_tile(shapes: Shapes, tile: Tile, dtype: torch.dtype, relu: Relus, seed: int) -> None:
    # a few sums may cancel to nothing, and relative errors of 16-bit types with them
    n, _, rows, columns = shapes.output
    fewest = n * rows * columns * min(shapes.expanded, shapes.following or shapes.expanded)
    assume(dtype in (torch.int8, torch.float32) or fewest >= 64)
    reseed(seed)
    check_chain_int8(shapes, tile, relu) if dtype == torch.int8 else check_chain(shapes, dtype, tile)


def test_operands_in_nchw_memory_are_taken_too() -> None:
    shapes = Shapes(stride=2)
    x, residual = (random_int8(2, 32, 5, 4).contiguous(), random_int8(*shapes.output).contiguous())
    layers = [random_layer(k, c, r, r) for k, c, r in shapes.layers]
    conv2, conv3 = (Folded(layer.w.contiguous(), layer.bias, layer.scale) for layer in layers[:2])
    with tiles(SMALL):
        z, _ = chain(x, conv2, conv3, residual, stride=2, residual_scale=0.37)
    assert_same_bits("z", z, chained_int8(x, layers, residual, 2)[0])


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 31), (4, 8), (3, 11)])
def test_pixels_around_a_tile(h: int, w: int) -> None:
    check_chain_int8(Shapes(n=1, h=h, w=w))


@pytest.mark.parametrize(
    ("dtype", "width"),
    [
        *((torch.float32, width) for width in (16, 256)),
        *((torch.float16, width) for width in (16, 32, 64, 128, 256)),
        *((torch.int8, width) for width in (32, 64, 128, 256)),
    ],
    ids=str,
)
def test_default_tiles_at_every_width(dtype: torch.dtype, width: int) -> None:
    """One pixel, so that one program is all there is to interpret."""
    shapes = Shapes(width, 32, 16, n=1, h=1, w=1)
    if dtype != torch.int8:
        check_chain(shapes._replace(n=3), dtype, None)
    else:
        check_chain_int8(shapes, None)


def posed(
    width: int, dtype: torch.dtype, following: int = 0, n: int = 128, shared: int = HOPPER
) -> list[Tile]:
    """Candidates for a chain of ResNet-50's second stage, or another width on its plane."""
    problem = Problem("chain", dtype, n, 56, 56, width, 4 * width, Conv(3, 3, 1, 1), following=following)
    return candidates(problem, shared=shared)


@pytest.mark.parametrize("following", [0, 64, 128, 256, 512])
@pytest.mark.parametrize("width", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
def test_candidates_divide_the_width_and_leave_registers(
    dtype: torch.dtype, width: int, following: int
) -> None:
    for tile in posed(width, dtype, following):
        assert width % tile.k == 0 or width < 32  # which int8 does not compute
        sums = tile.m * max(width, following + tile.n)
        assert sums / (32 * tile.warps) <= 160, "fp32 sums of one thread, of 255 registers"


@pytest.mark.parametrize(("width", "dtype"), [(64, torch.float16), (128, torch.bfloat16), (128, torch.int8)])
def test_there_is_something_to_tune_and_a_default_that_fits_every_gpu(width: int, dtype: torch.dtype) -> None:
    assert len(posed(width, dtype, width)) >= 6
    assert {tile.flat for tile in posed(width, dtype, width)} == {False, True}
    assert posed(width, dtype, width)[0].m == 128
    assert posed(width, dtype, width, n=1)[0].m == 64
    for tile in posed(width, dtype, width, shared=SMALLEST):
        assert tile.stages * (tile.m + width) * tile.k * dtype.itemsize < SMALLEST


def test_where_the_table_says_reference_torch_computes() -> None:
    x, residual = activation(2, 32, 5, 4), activation(2, 96, 5, 4)
    layers = [Folded(weight(k, c, r, r), normal(k)) for k, c, r in Shapes().layers]
    with choosing(lambda _: REFERENCE), recording() as launches:
        results = chain(x, layers[0], layers[1], residual, layers[2])
    with reference():
        expected = chain(x, layers[0], layers[1], residual, layers[2])
    assert not launches
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_one_kernel_reads_each_operand_once_and_neither_h_nor_z() -> None:
    with torch.device("meta"), recording() as launches:
        conv2, conv3, conv1 = (
            Folded(torch.empty(k, c, r, r), torch.empty(k))
            for k, c, r in ((64, 64, 3), (256, 64, 1), (64, 256, 1))
        )
        x, shortcut = torch.empty(2, 64, 8, 8), torch.empty(2, 256, 4, 4)
        z, following = chain(x, conv2, conv3, shortcut, conv1, stride=2)
    assert following is not None
    (launch,) = launches
    layers = (conv2, conv3, conv1)
    operands = [x, shortcut, *(layer.w for layer in layers), *(layer.bias for layer in layers)]
    assert bytes_read(launch) == sum(4 * tensor.numel() for tensor in operands)
    assert bytes_written(launch) == 4 * (z.numel() + following.numel())


def test_it_is_meant_for_tensor_cores_and_narrow_stages() -> None:
    widths = (8, 16, 32, 48, 64, 128, 256)
    assert [width for width in widths if chain_fits(width, torch.float16)] == [16, 32, 64, 128]
    assert [width for width in widths if chain_fits(width, torch.bfloat16, 2 * width)] == [16, 32, 64, 128]
    assert [width for width in widths if chain_fits(width, torch.int8)] == [32, 64, 128]
    assert not any(chain_fits(width, torch.float32) for width in widths)
    assert chain_fits(128, torch.float16, 256)
    assert not chain_fits(128, torch.float16, 512)


@pytest.mark.parametrize("context", [kernels, reference])
@pytest.mark.parametrize(
    ("width", "dtype"), [(8, torch.float16), (48, torch.float32), (512, torch.float16), (16, torch.int8)]
)
def test_other_widths_are_refused_everywhere(context: Any, width: int, dtype: torch.dtype) -> None:
    conv2, conv3 = folded(width, width, 3, dtype), folded(8, width, 1, dtype)
    x, residual = torch.zeros(1, width, 2, 2, dtype=dtype), torch.zeros(1, 8, 2, 2, dtype=dtype)
    with context(), pytest.raises(Unsupported, match=f"powers of two from .* to 256, not {width}"):
        chain(x, conv2, conv3, residual)


def folded(k: int, c: int, r: int, dtype: torch.dtype = torch.float32) -> Folded:
    scale = torch.ones(k) if dtype == torch.int8 else None
    return Folded(torch.zeros(k, c, r, r, dtype=dtype), torch.zeros(k), scale)


def operands(dtype: torch.dtype = torch.float32, **change: Any) -> dict[str, Any]:
    good = {
        "x": torch.zeros(1, 32, 4, 4, dtype=dtype),
        "conv2": folded(32, 32, 3, dtype),
        "conv3": folded(48, 32, 1, dtype),
        "residual": torch.zeros(1, 48, 4, 4, dtype=dtype),
        "conv1": folded(16, 48, 1, dtype),
    }
    return good | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(32, 4, 4)}, r"the chain takes \[N, width, H, W\]"),
        ({"conv2": folded(32, 32, 1)}, r"conv2.w is .* \(32, 32, 1, 1\), not .* \(32, 32, 3, 3\)"),
        ({"conv3": folded(48, 16, 1)}, r"conv3.w .* not .* \(48, 32, 1, 1\)"),
        ({"conv3": folded(0, 32, 1)}, "conv3.w"),
        ({"conv1": folded(16, 32, 1)}, r"conv1.w .* not .* \(16, 48, 1, 1\)"),
        ({"conv1": folded(16, 48, 1, torch.float16)}, "conv1.w is torch.float16"),
        ({"conv2": Folded(torch.zeros(32, 32, 3, 3), torch.zeros(31))}, "conv2.bias"),
        (
            {"conv3": Folded(torch.zeros(48, 32, 1, 1), torch.zeros(48), torch.ones(48))},
            "conv3.scale goes with",
        ),
        ({"residual": torch.zeros(1, 48, 2, 4)}, r"gives torch.float32 \(1, 48, 4, 4\)"),
        ({"stride": 2}, r"gives torch.float32 \(1, 48, 2, 2\)"),
        ({"residual_scale": 1.0}, "residual_scale belongs to an int8 residual"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        chain(**operands(**change))


def test_int8_needs_its_scales() -> None:
    bare = Folded(torch.zeros(32, 32, 3, 3, dtype=torch.int8), torch.zeros(32))
    with pytest.raises(ShapeError, match=r"conv2.scale goes with int8"):
        chain(**operands(torch.int8, conv2=bare, residual_scale=1.0))
    with pytest.raises(ShapeError, match="residual is given without residual_scale"):
        chain(**operands(torch.int8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 3}, "stride 1 or 2, not 3"),
        ({"conv3": replace(folded(48, 32, 1), relu=False)}, "conv3.relu is off, but only int8 saturates"),
        ({"conv1": folded(513, 48, 1)}, "next width is at most 512, not 513"),
        ({"x": torch.zeros(1, 32, 4, 4, dtype=torch.int64)}, "takes float32, float16 or bfloat16, not int64"),
    ],
)
def test_what_no_kernel_computes_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        chain(**operands(**change))

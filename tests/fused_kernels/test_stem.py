"""A network's first layers in training, against float64 autograd and, where numbers are exact, torch to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.choice import REFERENCE, Chosen, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import stem
from fused_kernels.ops.image import pack
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile
from tests.fused_kernels import ground_truth
from tests.fused_kernels.checks import assert_moments
from tests.fused_kernels.conftest import activation, normal, reference, reseed, tiles, weight
from tests.fused_kernels.launches import bytes_read, bytes_written
from tests.fused_kernels.stem_checks import (
    CIFAR,
    IMAGENET,
    StemCase,
    check_pool,
    check_training,
    g_alone,
    vectors_of,
)
from tests.fused_kernels.strategies import FUZZ
from tests.fused_kernels.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = [
    StemCase(),
    StemCase(CIFAR, pool=False, h=5, w=6),
    StemCase(
        Conv(1, 4), pool=False, h=3, w=7
    ),  # one row of taps, so that a packed image looks like one row of pixels
]
# rounding moves some values over the kink of the ReLU or past another maximum: enough of them make a fair average
LARGE = [StemCase(n=2, h=32, w=33), StemCase(CIFAR, pool=False, n=4, h=15, w=16)]
seeds = st.integers(0, 2**16)


@pytest.fixture(params=["kernels", "reference"])
def both(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test on the kernels, then on the references."""
    if request.param == "reference":
        with reference():
            yield
    else:
        yield


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("case", CASES, ids=["imagenet", "cifar", "one row of taps"])
def test_training_is_torchs_forward_and_backward(case: StemCase, small_tiles: Tile) -> None:
    check_training(case)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("case", "dtype"),
    list(zip(LARGE, [torch.float16, torch.bfloat16], strict=True)),
    ids=["imagenet fp16", "cifar bf16"],
)
def test_training_in_16_bits_errs_as_torchs_does(case: StemCase, dtype: torch.dtype) -> None:
    with tiles(Tile(256, 64, 32)):
        check_training(replace(case, dtype=dtype))


@pytest.mark.parametrize("case", CASES, ids=["imagenet", "cifar", "one row of taps"])
def test_the_references_train_in_float64(case: StemCase) -> None:
    check_training(replace(case, dtype=torch.float64))


@pytest.mark.parametrize(("flat", "k"), [(False, 16), (True, 16), (True, 32)])
def test_a_tile_shallower_than_a_tap_row_or_one_loop_over_all_change_nothing(flat: bool, k: int) -> None:
    with tiles(Tile(64, 16, k, flat=flat, splits=3)):
        check_training(StemCase(n=1, k=17))


@st.composite
def stems(draw: st.DrawFn) -> StemCase:
    """Windows of 1 to 7, strides of 1 to 3, images of 1 to 4 channels and 1 to 9 pixels a side."""
    r, s, padding = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(0, 3))
    case = StemCase(
        Conv(r, s, draw(st.integers(1, 3)), padding),
        draw(st.booleans()),
        n=draw(st.integers(1, 3)),
        c=draw(st.integers(1, 4)),
        k=draw(st.integers(1, 40)),
        h=draw(st.integers(max(1, r - 2 * padding), 9)),
        w=draw(st.integers(max(1, s - 2 * padding), 9)),
    )
    # a batch norm over a few numbers divides by what may be next to nothing; it takes back what a weight does to the
    # scale, so that of a weight with few elements little gradient is left
    assume(case.n * case.plane[0] * case.plane[1] >= 24 and case.c * r * s >= 4)
    return case


@FUZZ
@given(stems(), st.sampled_from([16, 32, 64]), st.integers(1, 4), seeds)
def test_training_with_any_geometry(case: StemCase, k: int, splits: int, seed: int) -> None:
    reseed(seed)
    with tiles(Tile(64, 64, k, splits=splits)):
        check_training(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("conv", [IMAGENET, CIFAR], ids=["imagenet", "cifar"])
def test_the_convolution_collects_the_moments_of_what_it_stores(
    conv: Conv, dtype: torch.dtype, small_tiles: Tile
) -> None:
    image, w = normal(2, 3, 7, 9), weight(40, 3, conv.r, conv.s, dtype)
    y, partials, _ = stem.stem_conv_moments(image, w, conv)
    truth, torchs = (
        ground_truth.conv(ground_truth.stored(image, dtype), w, (conv.stride, conv.padding), None, rounding)
        for rounding in (torch.float64, dtype)
    )
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close("y", y, truth, torchs=torchs)
    assert_moments(partials, y)


def test_without_moments_the_convolution_is_the_same(small_tiles: Tile) -> None:
    image, w = normal(2, 3, 7, 9), weight(40, 3, 3, 3)
    y, _, packed = stem.stem_conv_moments(image, w, CIFAR)
    again, packed_again = stem.stem_conv(image, w, CIFAR)
    assert torch.equal(again, y)
    assert torch.equal(packed_again, packed)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("conv", [IMAGENET, CIFAR, Conv(1, 1, 2, 0)], ids=str)
def test_packing_puts_zeros_around_and_beside_the_image(conv: Conv, channels: int) -> None:
    image = normal(2, channels, 5, 9)
    packed = pack(image, conv, torch.float32)
    width = packed.shape[2]
    assert packed.shape == (2, 5, width, 4)
    right = F.pad(image.permute(0, 2, 3, 1), (0, 4 - channels, conv.padding, width - 9 - conv.padding))
    assert torch.equal(packed, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", [*DTYPES, torch.uint8, torch.int8], ids=str)
def test_packing_converts(source: torch.dtype, dtype: torch.dtype) -> None:
    image = torch.randint(0, 100, (1, 3, 4, 5)).to(source)
    assert torch.equal(pack(image, CIFAR, dtype)[:, :, 1:6, :3].permute(0, 3, 1, 2), image.to(dtype))


def test_packing_passes_int8_through() -> None:
    image = torch.arange(-128, 128).to(torch.int8).reshape(1, 4, 8, 8)
    assert torch.equal(pack(image, CIFAR, torch.int8)[:, :, 1:9].permute(0, 3, 1, 2), image)


def every_second(x: Tensor) -> Tensor:
    """A view with strides of its own in every dimension."""
    return x.repeat_interleave(2, 2).repeat_interleave(3, 3)[:, :, ::2, 1::3]


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    "view",
    [
        torch.Tensor.contiguous,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.flip(0)[:1].expand(2, -1, -1, -1),
        every_second,
    ],
    ids=["nchw", "nhwc", "columns first", "one image twice", "strided"],
)
def test_an_image_may_lie_anyhow(view: Callable[[Tensor], Tensor]) -> None:
    image = view(normal(2, 3, 6, 7))
    packed = pack(image, IMAGENET, torch.float32)
    assert torch.equal(packed[:, :, 3:10, :3].permute(0, 3, 1, 2), image)


@pytest.mark.usefixtures("both")
def test_the_packed_image_is_never_the_image_itself() -> None:
    image = activation(1, 4, 3, 16)  # four channels and no padding: packing would change nothing
    packed = pack(image, Conv(1, 1), torch.float32)
    assert packed.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        *(((h, w), torch.float32) for h, w in [(1, 1), (1, 2), (2, 1), (3, 3), (4, 5), (7, 6)]),
        ((4, 5), torch.float16),
        ((4, 5), torch.bfloat16),
    ],
    ids=str,
)
def test_pooling_breaks_ties_as_torch_does(size: tuple[int, int], dtype: torch.dtype) -> None:
    y = activation(2, 20, *size, dtype, std=1.5).round()  # whole numbers from -4 to 4: most windows have ties
    scale = normal(20).sign()
    check_pool(y, vectors_of(scale, (normal(20) * 2).round(), normal(20).round()))


@pytest.mark.usefixtures("both")
def test_pooling_takes_the_last_nan_as_torch_does() -> None:
    y = activation(1, 16, 6, 7).round()
    y[normal(*y.shape) > 1] = float("nan")
    vectors = vectors_of(torch.ones(16), torch.zeros(16))
    z, index = stem.stem_pool(y, vectors)
    right, flat = F.max_pool2d(y.relu(), 3, 2, 1, return_indices=True)
    assert torch.equal(z.isnan(), right.isnan())
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    assert torch.equal((2 * rows - 1 + index // 3) * 7 + 2 * columns - 1 + index % 3, flat)


@pytest.mark.usefixtures("both")
def test_no_gradient_passes_where_the_batch_norm_is_exactly_zero() -> None:
    y, dz = torch.zeros(1, 16, 2, 2), torch.ones(1, 16, 1, 1)
    vectors = vectors_of(torch.ones(16), torch.zeros(16))
    _, index = stem.stem_pool(y, vectors)
    everywhere = dz.expand(1, 16, 2, 2)
    assert not stem.stem_pool_backward(dz, index, y, vectors, g_alone(16)).any()
    assert not stem.stem_pool_sums(dz, index, y, vectors).rows.any()
    assert not stem.stem_activate_backward(everywhere, y, vectors, g_alone(16)).any()
    assert not stem.stem_activate_sums(everywhere, y, vectors).rows.any()


@FUZZ
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), seeds)
def test_pooling_any_plane(n: int, k: int, p: int, q: int, seed: int) -> None:
    reseed(seed)
    y = activation(n, k, p, q).round()
    check_pool(y, vectors_of(normal(k).sign() * 2, normal(k).round(), normal(k).round()))


def test_pooling_is_right_where_its_rows_fill_tiles_and_one_row_more() -> None:
    for columns in (64, 66):  # 32 and 33 columns of z; with 128 channels a tile has 16 rows
        check_pool(activation(1, 130, 1, columns).round(), vectors_of(torch.ones(130), torch.ones(130)))


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_weights_gradient_has_the_images_channels(channels: int, small_tiles: Tile) -> None:
    image, dy = normal(2, channels, 9, 8), activation(2, 24, 5, 4)
    packed = pack(image, IMAGENET, torch.float32)
    dw = stem.stem_wgrad(packed, dy, IMAGENET, channels)
    size = (24, channels, 7, 7)
    truth = ground_truth.gradient_of_weight(image, dy, size, (2, 3), None, torch.float64)
    assert_close("dw", dw, truth)
    assert dw.is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_in_any_memory_gives_the_same(small_tiles: Tile) -> None:
    image, w = normal(1, 3, 8, 8), weight(20, 3, 3, 3)
    y, _, packed = stem.stem_conv_moments(image, w, CIFAR)
    vectors = vectors_of(torch.ones(20), torch.zeros(20))
    _, index = stem.stem_pool(y, vectors)
    dz = activation(1, 20, 4, 4)
    for operation in (
        lambda dz: stem.stem_pool_backward(dz, index.contiguous(), y.contiguous(), vectors, g_alone(20)),
        lambda dz: stem.stem_pool_sums(dz, index.contiguous(), y.contiguous(), vectors).rows,
        lambda dz: stem.stem_activate_backward(dz.repeat(1, 1, 2, 2), y.contiguous(), vectors, g_alone(20)),
        lambda dz: stem.stem_activate_sums(dz.repeat(1, 1, 2, 2), y.contiguous(), vectors).rows,
        lambda dz: stem.stem_wgrad(packed, dz.repeat(1, 1, 2, 2), CIFAR, 3),
    ):
        assert torch.equal(operation(dz), operation(dz.contiguous()))


def test_a_table_may_give_each_operation_to_the_reference_alone() -> None:
    case = StemCase(CIFAR, pool=True, h=6, w=7, n=1)
    for kind in ("fprop", "wgrad"):

        def choose(problem: Problem, kind: str = kind) -> Chosen:
            return REFERENCE if problem.kind == kind else Tile(64, 64, 16)

        with choosing(choose):
            check_training(case)


def test_problems_are_named_for_tuning_tables() -> None:
    problems: list[Problem] = []

    def choose(problem: Problem) -> Tile:
        problems.append(problem)
        return Tile(64, 64, 32)

    image, w = torch.empty(8, 3, 224, 224, device="meta"), torch.empty(64, 3, 7, 7, device="meta")
    with choosing(choose):
        _, _, packed = stem.stem_conv_moments(image, w, IMAGENET)
        stem.stem_wgrad(packed, torch.empty(8, 64, 112, 112, device="meta"), IMAGENET, 3)
    assert [problem.key for problem in problems] == [
        "fprop float32 n8 224x224 32->64 7x7/2+3 identity stem_moments",
        "wgrad float32 n8 112x112 224->64 1x1/1+0 identity stem",
    ]


def test_on_the_meta_device_shapes_and_launches_are_known_and_nothing_runs() -> None:
    image, w = torch.empty(8, 3, 224, 224, device="meta"), torch.empty(64, 3, 7, 7, device="meta").bfloat16()
    with recording() as launches:
        y, _, packed = stem.stem_conv_moments(image, w, IMAGENET)
        z, index = stem.stem_pool(y, torch.empty(4, 64, device="meta"))
    assert (y.shape, z.shape, index.dtype) == ((8, 64, 112, 112), (8, 64, 56, 56), torch.uint8)
    assert packed.shape == (8, 224, 240, 4)
    assert [launch.kernel for launch in launches] == [
        "stem.pack_kernel",
        "conv.conv_kernel",
        "stem.pool_kernel",
    ]
    y_bytes = 8 * 64 * 112 * 112 * 2
    assert bytes_read(launches[2]) == y_bytes + 4 * 64 * 4
    assert bytes_written(launches[2]) == y_bytes // 4 + y_bytes // 8


@pytest.mark.parametrize(
    ("image", "w", "error", "message"),
    [
        (torch.zeros(1, 5, 8, 8), torch.zeros(8, 5, 3, 3), ShapeError, "1 to 4 channels"),
        (torch.zeros(3, 8, 8), torch.zeros(8, 3, 3, 3), ShapeError, "1 to 4 channels"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(8, 4, 3, 3), ShapeError, "do not fit a 3x3"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(8, 3, 5, 5), ShapeError, "do not fit a 3x3"),
        (torch.zeros(1, 3, 8, 8).int(), torch.zeros(8, 3, 3, 3), Unsupported, "no int32 image"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(8, 3, 3, 3).int(), Unsupported, "training a stem takes"),
        (
            torch.zeros(1, 3, 8, 8).char(),
            torch.zeros(8, 3, 3, 3).char(),
            Unsupported,
            "training a stem takes",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    image: Tensor, w: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stem.stem_conv(image, w, CIFAR)

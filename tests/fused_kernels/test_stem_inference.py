"""A network's first layers in inference: fp32, fp16 and bf16 against float64, int8 against whole numbers to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import stem
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import normal, reference, reseed, tiles, weight
from tests.fused_kernels.ground_truth import stored
from tests.fused_kernels.launches import bytes_read, bytes_written
from tests.fused_kernels.stem_checks import CIFAR, IMAGENET, StemCase
from tests.fused_kernels.strategies import FUZZ
from tests.fused_kernels.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ONE_PROGRAM = Tile(64, 64, 32)
CASES = [StemCase(h=10, w=11, k=20), StemCase(CIFAR, h=5, w=6, k=20)]


@pytest.fixture(params=["kernels", "reference"])
def both(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test on the kernels, then on the references."""
    if request.param == "reference":
        with reference():
            yield
    else:
        yield


@pytest.fixture(params=[1, 2, 4])
def strip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Pooled pixels that a row of the kernel walks down, which otherwise depends on the work that there is."""
    monkeypatch.setattr(stem, "strip_length", lambda *_: request.param)
    return int(request.param)


def truth(image: Tensor, w: Tensor, bias: Tensor, case: StemCase, dtype: torch.dtype) -> Tensor:
    """relu(conv + bias), then the pool; every tensor stored as ``dtype``."""
    x, window = stored(image, w.dtype), (case.conv.stride, case.conv.padding)
    z = stored(
        stored(F.conv2d(x, w.double(), None, *window), dtype) + bias.double()[:, None, None], dtype
    ).relu()
    return F.max_pool2d(z, 3, 2, 1) if case.pool else z


def check(case: StemCase) -> None:
    image, w, bias = case.image(), case.weight(), normal(case.k).to(case.wide)
    z = stem.stem_inference(image, w, bias, case.conv, pool=case.pool)
    exact, torchs = (truth(image, w, bias, case, dtype) for dtype in (torch.float64, case.dtype))
    assert z.dtype == case.dtype
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert_close("z", z, exact, torchs=torchs)


def int8(*shape: int, low: int = -128, high: int = 127) -> Tensor:
    """Seeded whole numbers."""
    return torch.randint(low, high + 1, shape).to(torch.int8)


def check_int8(case: StemCase, *, relu: bool = True) -> None:
    """Products and sums in int64, then fp32 in the order of the docstring."""
    image, w = int8(case.n, case.c, case.h, case.w), int8(case.k, case.c, case.conv.r, case.conv.s)
    # a scale of 2**-n makes ties, which must round to even, and sums that saturate
    scale, bias = 2.0 ** torch.randint(-14, -8, (case.k,)), torch.randint(-40, 40, (case.k,)) / 2
    z = stem.stem_inference(image, w, bias, case.conv, pool=case.pool, scale=scale, relu=relu)
    sums = F.conv2d(image.double(), w.double(), None, case.conv.stride, case.conv.padding).long()
    v = sums.float() * scale[:, None, None] + bias[:, None, None]
    right = v.round().clamp(0 if relu else -128, 127)
    right = F.max_pool2d(right, 3, 2, 1) if case.pool else right
    assert z.dtype == torch.int8
    assert torch.equal(z.float(), right)


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "no pool"])
@pytest.mark.parametrize("case", CASES, ids=["imagenet", "cifar"])
def test_a_stem_is_torchs(case: StemCase, pool: bool, dtype: torch.dtype) -> None:
    with tiles(ONE_PROGRAM):
        check(replace(case, pool=pool, dtype=dtype))


def test_the_reference_computes_float64() -> None:
    check(replace(CASES[0], dtype=torch.float64))


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "saturation"])
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "no pool"])
@pytest.mark.parametrize("case", CASES, ids=["imagenet", "cifar"])
def test_an_int8_stem_is_exact(case: StemCase, pool: bool, relu: bool) -> None:
    with tiles(ONE_PROGRAM):
        check_int8(replace(case, pool=pool), relu=relu)


@pytest.mark.parametrize(
    ("rows", "strip"), [(7, 1), (4, 2), (7, 2), (9, 2), (1, 4), (7, 4), (9, 4)], indirect=["strip"]
)
def test_strips_of_any_length_meet_without_gap_or_overlap(rows: int, strip: int) -> None:
    case = StemCase(Conv(3, 3, 1, 1), n=2, c=1, k=16, h=rows, w=4)
    with tiles(Tile(16, 16, 16)):
        check(case)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1), (2, 2)], ids=str)
def test_planes_smaller_than_a_window_are_pooled(size: tuple[int, int]) -> None:
    with tiles(ONE_PROGRAM):
        check(StemCase(CIFAR, n=1, k=16, h=size[0], w=size[1]))
        check_int8(StemCase(CIFAR, n=1, k=16, h=size[0], w=size[1]))


@st.composite
def stems(draw: st.DrawFn) -> StemCase:
    """Windows of 1 to 5, strides of 1 to 2, images of 1 to 4 channels and 1 to 8 pixels a side."""
    r, s, padding = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(0, 2))
    return StemCase(
        Conv(r, s, draw(st.integers(1, 2)), padding),
        draw(st.booleans()),
        n=draw(st.integers(1, 3)),
        c=draw(st.integers(1, 4)),
        k=draw(st.integers(1, 40)),
        h=draw(st.integers(max(1, r - 2 * padding), 8)),
        w=draw(st.integers(max(1, s - 2 * padding), 8)),
    )


@FUZZ
@given(
    stems(),
    st.sampled_from([32, 64]),
    st.sampled_from([16, 32]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_a_stem_of_any_geometry(case: StemCase, n: int, k: int, flat: bool, relu: bool, seed: int) -> None:
    reseed(seed)
    with tiles(Tile(64, n, k, flat=flat, group=2)):
        check(case)
        check_int8(case, relu=relu)


@pytest.mark.usefixtures("both")
def test_what_lies_outside_of_the_plane_never_wins() -> None:
    image, w = torch.full((1, 1, 6, 6), -3.0), torch.ones(16, 1, 1, 1)
    with tiles(ONE_PROGRAM):
        z = stem.stem_inference(image, w, torch.full((16,), 5.0), Conv(1, 1))
        z8 = stem.stem_inference(
            image.char(), w.char(), torch.full((16,), 5.0), Conv(1, 1), scale=torch.ones(16)
        )
        low = stem.stem_inference(
            image.char(), w.char(), torch.full((16,), -120.0), Conv(1, 1), scale=torch.ones(16), relu=False
        )
    for values in (z, z8):
        assert set(values.flatten().tolist()) == {2.0}  # a zero beside the plane would give 5
    assert set(low.flatten().tolist()) == {-123}  # and -120 or 0 here


@pytest.mark.usefixtures("both")
def test_a_nan_reaches_every_window_that_sees_it() -> None:
    image = normal(1, 3, 9, 9)
    image[0, 1, 4, 6] = float("nan")
    w, bias = weight(16, 3, 3, 3), torch.zeros(16)
    with tiles(ONE_PROGRAM):
        z = stem.stem_inference(image, w, bias, CIFAR)
    right = F.max_pool2d(F.conv2d(image, w, padding=1).relu(), 3, 2, 1)
    assert z[right.isnan()].isnan().all()
    # the pixel beside a window has weight zero, and 0 * NaN is NaN: one window more to the left, none elsewhere
    assert not z[..., :2].isnan().any()
    assert not z[..., :1, :].isnan().any()


def test_saturation_and_rounding_follow_the_maximum() -> None:
    image = torch.tensor([[-128, 127, 3, 5]]).char().reshape(1, 1, 1, 4)
    w, scale, bias = torch.ones(1, 1, 1, 1).char(), torch.tensor([0.5]), torch.tensor([0.0])
    with tiles(ONE_PROGRAM):
        whole = stem.stem_inference(image, w, bias, Conv(1, 1), scale=scale)
        each = stem.stem_inference(image, w, bias, Conv(1, 1), scale=scale, pool=False)
        large = stem.stem_inference(image, w, bias, Conv(1, 1), scale=scale * 10, pool=False)
    assert each.flatten().tolist() == [0, 64, 2, 2]  # 63.5 and 1.5 go up, 2.5 goes down
    assert whole.flatten().tolist() == [64, 64]
    assert large.flatten().tolist() == [0, 127, 15, 25]


@pytest.mark.parametrize(
    ("pixels", "height", "cols", "strip"),
    [
        (56 * 56, 56, 64, 1),  # one image: every program is needed
        (32 * 56 * 56, 56, 64, 2),
        (256 * 56 * 56, 56, 64, 8),
        (10**7, 5, 64, 4),  # no longer than the plane
        (10**7, 1, 64, 1),
        (1, 1, 1, 1),
    ],
)
def test_strips_are_as_long_as_leaves_work_for_every_processor(
    pixels: int, height: int, cols: int, strip: int
) -> None:
    assert stem.strip_length(pixels, height, cols, Tile(128, 64, 32)) == strip


def test_the_convolutions_output_never_reaches_memory() -> None:
    image, w = torch.empty(256, 3, 224, 224, device="meta"), torch.empty(64, 3, 7, 7, device="meta").half()
    with recording() as launches, tiles(Tile(128, 64, 32)):
        z = stem.stem_inference(image, w, torch.empty(64, device="meta"), IMAGENET)
    assert z.shape == (256, 64, 56, 56)
    assert [launch.kernel for launch in launches] == ["stem.pack_kernel", "stem.conv_pool_kernel"]
    assert bytes_written(launches[1]) == z.numel() * 2
    assert bytes_read(launches[1]) == 256 * 224 * 240 * 4 * 2 + 64 * 7 * 32 * 2 + 64 * 4


@pytest.mark.parametrize(
    ("image", "w", "scale", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(8, 3, 3, 3).char(), torch.ones(8), Unsupported, "quantize the"),
        (
            torch.zeros(1, 3, 4, 4).byte(),
            torch.zeros(8, 3, 3, 3).char(),
            torch.ones(8),
            Unsupported,
            "quantize the",
        ),
        (
            torch.zeros(1, 3, 4, 4).char(),
            torch.zeros(8, 3, 3, 3).char(),
            None,
            Unsupported,
            "a scale with int8",
        ),
        (torch.zeros(1, 3, 4, 4), torch.zeros(8, 3, 3, 3), torch.ones(8), Unsupported, "a scale with int8"),
        (
            torch.zeros(1, 3, 4, 4).char(),
            torch.zeros(8, 3, 3, 3).char(),
            torch.ones(1),
            ShapeError,
            "scale is",
        ),
        (torch.zeros(1, 3, 4, 4), torch.zeros(9, 3, 3, 3), None, ShapeError, "bias is"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    image: Tensor, w: Tensor, scale: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stem.stem_inference(image, w, torch.zeros(8), CIFAR, scale=scale)


def test_a_stem_in_floating_point_has_its_relu() -> None:
    with pytest.raises(Unsupported, match="without its ReLU in int8 alone"):
        stem.stem_inference(
            torch.zeros(1, 3, 4, 4), torch.zeros(8, 3, 3, 3), torch.zeros(8), CIFAR, relu=False
        )

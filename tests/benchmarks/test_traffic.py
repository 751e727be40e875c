"""Bytes are counted as a reader would count them by hand, and the formulas give the figures that set the goals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from benchmarks.traffic import compiled, eager, floors, ours
from benchmarks.traffic.command import main, show
from benchmarks.traffic.differences import differences
from benchmarks.traffic.footprint import STATISTICS, bytes_of, size
from benchmarks.traffic.pages import BAR, PUBLISHED, as_page
from benchmarks.traffic.shapes import (
    ConvShape,
    NetworkShape,
    block_shape,
    chain_of,
    resnet,
    touched,
)
from benchmarks.traffic.tables import inference, training
from benchmarks.traffic.torch_ops import TorchOps
from fused_kernels.errors import Unsupported
from fused_kernels.launch import Launch, recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import tiles
from tests.fused_kernels.launches import bytes_read, bytes_written

HALF = torch.float16
PAGE = Path(__file__).parents[2] / "docs" / "traffic.md"
SMALL = block_shape("layer1.1", 16, 4, 4, 1, 4, 4)
"""A bottleneck 16 -> 4 -> 4 -> 16 on 4x4: in 16 bits and with two images, its wide tensors have 1024 bytes, its narrow
ones 256, and its weights 64, 144 and 64 elements."""
PROJECTED = block_shape("layer2.0", 16, 8, 4, 2, 5, 5)
GEOMETRIES = [
    Conv(1, 1),
    Conv(1, 1, 2),
    Conv(3, 3, 1, 1),
    Conv(3, 3, 2, 1),
    Conv(7, 7, 2, 3),
    Conv(3, 3, 3, 0),
]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_shapes_have_the_parameters_that_torchvision_publishes(name: str, parameters: int) -> None:
    assert resnet(name).parameters == parameters


def test_unknown_networks_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"'resnet51'.*resnet50"):
        resnet("resnet51")


@pytest.mark.parametrize("conv", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size_", [7, 8, 11])
def test_touched_pixels_are_those_that_a_gradient_reaches(conv: Conv, size_: int) -> None:
    x = torch.ones(1, 1, size_, size_, dtype=torch.float64, requires_grad=True)
    F.conv2d(
        x, torch.ones(1, 1, conv.r, conv.s, dtype=torch.float64), stride=conv.stride, padding=conv.padding
    ).sum().backward()
    assert x.grad is not None
    shape = ConvShape(1, 1, conv, size_, size_)
    assert shape.x_touched == int((x.grad != 0).sum())


def test_touched_counts_each_pixel_once_and_none_outside() -> None:
    assert touched(4, 3, 3, stride=2, base=-1) == 4
    assert touched(6, 2, 1, stride=2, base=1, step=-1) == 2
    assert touched(3, 5, 0) == 0


def _dgrad_launches(conv: Conv, size_: int) -> tuple[list[Launch], torch.Tensor, torch.Tensor]:
    y = ours.meta(2, 8, size_, size_, dtype=HALF)
    dy = ours.meta(2, 8, *conv.output_size(size_, size_), dtype=HALF)
    weight = ours.meta(8, 8, conv.r, conv.s, dtype=HALF)
    with recording() as launches, tiles(Tile(16, 16, 16)):
        _, partials = convolution.dgrad_drelu(dy, weight, conv, y, ours.meta(4, 8))
    return launches, dy, partials.rows


def test_a_strided_dgrad_moves_every_tensor_once() -> None:
    (launch,), dy, partials = _dgrad_launches(Conv(3, 3, 2, 1), 7)
    g = y = 2 * 8 * 7 * 7 * 2
    weight, vectors = 9 * 8 * 8 * 2, 4 * 8 * 4
    assert bytes_of(launch) == {"dgrad": g + y + weight + vectors + size(dy), STATISTICS: size(partials)}


def test_a_strided_dgrad_of_one_tap_reads_no_border_that_it_does_not_meet() -> None:
    conv = Conv(1, 1, 2, 1)
    (launch,), dy, partials = _dgrad_launches(conv, 6)
    assert dy.shape[2:] == (4, 4)
    whole = bytes_read(launch) + bytes_written(launch)
    assert whole - bytes_of(launch).total() == size(dy) * (16 - 9) // 16, (
        "its first row and column are padding"
    )
    assert bytes_of(launch)[STATISTICS] == size(partials)


@pytest.mark.parametrize("conv", [Conv(1, 1), Conv(3, 3, 1, 1)], ids=str)
def test_a_dgrad_of_stride_1_moves_whole_tensors(conv: Conv) -> None:
    (launch,), _, _ = _dgrad_launches(conv, 6)
    assert bytes_of(launch).total() == bytes_read(launch) + bytes_written(launch)


def test_a_compact_shortcut_is_read_once() -> None:
    conv, dy = Conv(3, 3, 2, 1), ours.meta(2, 8, 4, 4, dtype=HALF)
    compact, weight = ours.meta(2, 8, 4, 4, dtype=HALF), ours.meta(8, 8, 3, 3, dtype=HALF)
    with recording() as launches, tiles(Tile(16, 16, 16)):
        convolution.dgrad_shortcut(dy, weight, conv, (2, 8, 7, 7), compact, 2)
        convolution.dgrad_shortcut(dy, weight, conv, (2, 8, 7, 7), None)
    with_shortcut, without = (bytes_of(launch).total() for launch in launches)
    assert with_shortcut - without == size(compact)


def test_a_hand_computed_block_equals_the_count() -> None:
    with tiles(Tile(32, 32, 32)):
        (found,) = ours.stage_training((SMALL,), 2, HALF)
    wide, narrow = 1024, 256
    assert found["fprop"] == (wide + 128 + narrow) + (narrow + 288 + narrow + 64) + (narrow + 128 + wide + 64)
    assert found["join"] == 3 * wide + 256
    assert found["entry"] == 4 * wide + 256
    assert found["dy pass"] == (3 * wide + 256 + 192) + 2 * (3 * narrow + 64 + 48)
    # the two 1x1 make dy on the way, so the dy pass is theirs
    assert found["wgrad"] == (narrow + 64 + 256) + (2 * narrow + 64 + 576) + (wide + 256)
    dgrad_3, dgrad_2 = wide + 128 + 2 * narrow + 64, narrow + 288 + 2 * narrow + 64
    assert found["dgrad"] == dgrad_3 + dgrad_2 + (narrow + 128 + 2 * wide)
    # one tile each: rows of (mean, M2) written and read, and what becomes of them
    finalize = {4: 32 + 32 + 32 + 64 + 32, 16: 128 + 128 + 128 + 256 + 128}
    backward = {4: 32 + 64 + 48 + 16 + 16, 16: 128 + 256 + 192 + 64 + 64}
    rows = {4: 32, 16: 128}
    assert found[STATISTICS] == sum(2 * rows[c] + finalize[c] + backward[c] for c in (4, 4, 16))
    # one cast of each weight
    assert found[ours.TORCH] == 6 * (64 + 144 + 64)
    kinds = {"fprop", "join", "entry", "dy pass", "wgrad", "dgrad", STATISTICS, ours.TORCH}
    assert {kind for kind, count in found.items() if count} == kinds


def test_a_hand_computed_floor() -> None:
    found = floors.block_training(SMALL, SMALL, 2, HALF)
    wide, narrow, mask = 1024, 256, 64
    assert found["fprop"] == found["wgrad"] - 2 * 272 == 2 * (wide + narrow) + 2 * narrow + 2 * 272
    assert found["join"] == 3 * wide + mask
    assert found["dy pass"] == 3 * (wide + 2 * narrow)
    inner = (wide + 2 * narrow) + 3 * narrow
    first = narrow + wide + wide + mask + wide
    assert found["dgrad"] == inner + first + 2 * 272
    assert found.total() == sum(found[kind] for kind in ("fprop", "join", "dy pass", "wgrad", "dgrad"))


def test_a_hand_computed_eager_block() -> None:
    found = eager.block(SMALL, 2, HALF, training=True)
    wide, narrow = 1024, 256
    assert found["relu_"] == 2 * (2 * narrow + wide)
    assert found["threshold_backward"] == 3 * (2 * narrow + wide)
    assert found["add_"] == found["add"] == 3 * wide
    assert found["_to_copy"] == 2 * 6 * 272
    vectors = {4: 16, 16: 64}
    forward = {4: 3 * narrow, 16: 3 * wide}
    assert found["native_batch_norm"] == sum(forward[c] + 6 * vectors[c] for c in (4, 4, 16))


def test_a_hand_computed_compiled_block() -> None:
    found = compiled.block_training(SMALL, SMALL, 2, HALF)
    wide, narrow = 1024, 256
    assert found["BN backward"] == 7 * 2 * narrow + 8 * wide
    assert (found["statistics"], found["apply"], found["join"]) == (2 * narrow + wide, 4 * narrow, 3 * wide)
    assert found["fprop"] == found["dgrad"] == found["wgrad"] == 2 * (wide + narrow) + 2 * narrow + 2 * 272
    assert found["casts"] == 12 * 272


def test_parts_of_a_stage_hold_every_launch() -> None:
    stage = (PROJECTED, block_shape("layer2.1", 32, 8, 4, 1, 3, 3))
    with recording() as launches:
        parts = ours.stage_training(stage, 2, HALF)
    assert len(parts) == 2
    counted = sum(part.total() - part[ours.TORCH] for part in parts)
    assert counted == sum(bytes_of(launch).total() for launch in launches)
    # the block behind is finished by the epilogue of the one in front, so one entry is enough
    assert parts[0]["entry"] == 0 < parts[1]["entry"]


def test_a_strided_basic_block_ends_with_its_gradient() -> None:
    stage = (block_shape("layer1.0", 8, 8, 1, 1, 5, 5), block_shape("layer2.0", 8, 16, 1, 2, 5, 5))
    first, second = ours.stage_training(stage, 2, HALF)
    alone = ours.stage_training(stage[:1], 2, HALF)[0]
    assert first["dgrad"] == alone["dgrad"]
    assert second["dgrad"] > first["dgrad"] > 0


def test_inference_counts_each_block_apart() -> None:
    stage = (PROJECTED, *(block_shape(f"layer2.{index}", 32, 8, 4, 1, 3, 3) for index in (1, 2)))
    with recording() as launches:
        parts = ours.stage_inference(stage, 2, HALF)
    assert len(parts) == 3
    assert parts[1] == parts[2]
    total = sum(part.total() - part[ours.TORCH] for part in parts)
    assert total == sum(bytes_of(launch).total() for launch in launches)


@pytest.mark.parametrize("training_", [True, False])
def test_two_passes_of_an_operation_count_twice(training_: bool) -> None:
    x = ours.meta(2, 8, 4, 4, dtype=HALF)
    vectors = [ours.meta(8) for _ in range(4)]
    with TorchOps() as ops:
        F.batch_norm(x, vectors[0], vectors[1], vectors[2], vectors[3], training_, 0.1, 1e-5)
    passes = 3 if training_ else 2
    small = ops.bytes.total() - passes * size(x)
    assert 4 * 32 <= small <= 6 * 32


def test_views_and_allocations_move_nothing_and_expanded_tensors_what_they_hold() -> None:
    x = ours.meta(2, 8, 4, 4, dtype=HALF)
    with TorchOps() as ops:
        torch.empty_like(x.permute(0, 2, 3, 1)[:, 1:].detach())
    assert ops.bytes.total() == 0
    with TorchOps() as ops:
        ours.meta(2, 8, 1, 1, dtype=HALF).expand(2, 8, 4, 4) + x
    assert ops.bytes.total() == 2 * 8 * 2 + 2 * size(x)


def test_a_convolutions_backward_reads_its_gradient_for_each_result() -> None:
    x = ours.meta(2, 8, 4, 4, dtype=HALF).requires_grad_()
    w = ours.meta(8, 8, 1, 1, dtype=HALF).requires_grad_()
    y = F.conv2d(x, w, stride=2)
    with TorchOps() as ops:
        torch.autograd.grad(y, [x, w], torch.empty_like(y))
    # dgrad: dy and w to dx; wgrad: dy and the quarter of x that it meets to dw
    assert ops.bytes["convolution_backward"] == 2 * size(y) + 2 * size(w) + size(x) + size(x) // 4


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[int, NetworkShape]:
    return request.param, resnet("resnet50")


def test_the_formulas_give_the_published_floors(published: tuple[int, NetworkShape]) -> None:
    n, network = published
    _, _, fused, pool, chain = PUBLISHED[n]
    step, run = training(network, n, torch.bfloat16).total, inference(network, n, HALF).total
    assert step.floor.total() / 1e9 == pytest.approx(fused, abs=0.05)
    assert run.floor.total() / 1e6 == pytest.approx(pool, abs=0.5)
    assert (run.floor.total() - floors.chain_saves(network, n, HALF)) / 1e6 == pytest.approx(chain, abs=0.5)


def test_eager_and_compiled_come_near_their_published_totals(published: tuple[int, NetworkShape]) -> None:
    n, network = published
    eager_, compiled_, *_ = PUBLISHED[n]
    total = training(network, n, torch.bfloat16).total
    assert total.eager.total() / 1e9 == pytest.approx(eager_, rel=0.012)
    assert total.compiled.total() / 1e9 == pytest.approx(compiled_, rel=0.012)


def test_ours_is_within_a_tenth_of_the_floors() -> None:
    network = resnet("resnet50")
    assert training(network, 256, torch.bfloat16).total.ratio < BAR
    assert inference(network, 256, HALF).total.ratio < BAR


def test_the_differences_explain_all_but_a_thousandth() -> None:
    step = training(resnet("resnet50"), 256, torch.bfloat16)
    found = differences(step)
    assert sum(item.bytes for item in found) == step.total.ours.total() - step.total.floor.total()
    rest = next(item for item in found if item.name == "rest")
    assert abs(rest.bytes) < 0.001 * step.total.floor.total()


def test_the_page_is_what_the_command_writes() -> None:
    network = resnet("resnet50")
    command = "python -m benchmarks.traffic --markdown docs/traffic.md"
    page = as_page(training(network, 256, torch.bfloat16), inference(network, 256, torch.bfloat16), command)
    assert PAGE.read_text("utf-8") == page, f"docs/traffic.md is old: {command}"


def _exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    return done.value.code


def test_the_module_runs() -> None:
    line = [sys.executable, "-m", "benchmarks.traffic", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "Example: python -m benchmarks.traffic" in done.stdout


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code("--model", "resnet18", "--batch", "2", "--size", "32", "--inference", "--json") == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["rows"]] == [
        "stem",
        *(b.name for b in resnet("resnet18").blocks),
        "head",
    ]
    assert table["total"]["ours"] == sum(row["ours"] for row in table["rows"])
    assert (table["model"], table["batch"], table["pass"]) == ("resnet18", 2, "inference")


def test_the_command_prints_aligned_columns_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "docs" / "traffic.md"
    assert _exit_code("--model", "resnet18", "--batch", "2", "--size", "64", "--markdown", str(file)) == 0
    shown = capsys.readouterr().out
    table = shown.split("\n\n")[0].splitlines()
    assert table[0] == "resnet18, training step, batch 2, bfloat16, GB"
    assert len({len(line) for line in table[1:-1]}) == 1
    assert "of the fusedA floor" in table[-1]
    assert file.read_text("utf-8").startswith("# Bytes that a ResNet moves")


def test_a_terminal_gets_a_table_with_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    table = inference(resnet("resnet18", 32), 2, HALF)
    console = Console(force_terminal=True, width=120, highlight=False)
    show([table], console)
    shown = capsys.readouterr().out
    assert all(row.name in shown for row in table.rows)
    assert "\x1b[1" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--batch", "0"], 2, "at least one image"),
        (["--training", "--markdown", "page.md"], 2, "--markdown writes both passes"),
        (["--model", "vgg16"], 2, "invalid choice"),
        (["--size", "0"], 1, "error: a 7x7 convolution with padding 3 needs a larger input than 0x0"),
    ],
)
def test_bad_usage_gets_one_sentence(
    arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(*arguments) == code
    assert sentence in capsys.readouterr().err


def test_a_specification_is_what_the_shapes_say() -> None:
    chain = chain_of((PROJECTED, SMALL))
    assert [block.shortcut for block in chain.blocks] == ["projection", "identity"]
    assert chain.blocks[0].stride == 2
    assert [layer.conv for layer in chain.layers] == [
        layer.conv for layer in (*PROJECTED.layers, *SMALL.layers)
    ]

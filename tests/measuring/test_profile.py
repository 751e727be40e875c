"""``rescompile profile``: blocks, layers, findings, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest

from rescompile.backends.profiling import LayerTime
from rescompile.errors import EngineError, UsageError
from rescompile.measuring.profile import blocks_of_layers, profile
from rescompile.measuring.profile_findings import findings
from rescompile.measuring.profile_report import BlockProfile, EngineProfile, LayerProfile, ProfileReport
from rescompile.measuring.roofline import Roofline
from rescompile.measuring.work import work_of
from rescompile.presenting.terminal.profile import lines
from rescompile.report import BlockWork
from tests.backends.engines import make_engine
from tests.measuring.scripted import steady
from tests.measuring.test_run_comparison import bench_report

RATES = Roofline(
    memory_bytes_per_second=1e10, cache_bytes_per_second=4e10, cache_bytes=2**25,
    float_ops_per_second=1e11, int8_ops_per_second=2e11, threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(small_engines: dict[str, Path]) -> ProfileReport:
    directories = [small_engines["fp32"], small_engines["int8"]]
    return profile(directories, seconds=0.2, threads=1, roofline=RATES)


def test_blocks_have_times_that_add_up_to_the_layers(measured: ProfileReport) -> None:
    for engine in measured.engines:
        assert [block.block for block in engine.blocks][:2] == ["stem", "layer1.0"]
        assert engine.blocks[-1].block == "fc"
        assert all(block.ms > 0 and block.launches > 0 for block in engine.blocks[:-1])
        assert sum(block.launches for block in engine.blocks) == len(engine.layers)
        # medians of sums, so that they add up only about
        assert sum(block.ms for block in engine.blocks) == pytest.approx(engine.layers_ms, rel=0.5)


def test_each_block_stands_beside_its_work_and_floor(measured: ProfileReport) -> None:
    fp32, int8 = (engine.blocks[4] for engine in measured.engines)
    assert fp32.work.bytes == 4 * int8.work.bytes
    assert fp32.arithmetic_ms == pytest.approx(fp32.work.ops / 1e8)
    assert fp32.floor_ms == max(fp32.memory_ms, fp32.arithmetic_ms)
    assert len(fp32.float_layers) == 2
    assert int8.float_layers == ()


def test_the_report_comes_back_from_json_and_prints(measured: ProfileReport) -> None:
    assert msgspec.json.decode(measured.to_json(), type=ProfileReport) == measured
    text = lines(measured)
    assert "fp32 ms" in text[2]
    assert "int8 ms" in text[2]
    (row,) = [line for line in text if line.startswith("layer3.2 ")]
    assert len(row.split()) == 10
    assert any("INT8 is" in line and "as fast as fp32" in line for line in text)


def test_one_engine_shows_shares_and_bounds(measured: ProfileReport) -> None:
    alone = lines(msgspec.structs.replace(measured, engines=measured.engines[1:]))
    (row,) = [line for line in alone if line.startswith("layer3.2 ")]
    assert row.split()[-1] in ("arithmetic", "memory")
    assert "%" in row


def layer(*origins: str) -> LayerTime:
    return LayerTime(name=origins[0], origins=origins, kind="other", implementation="", precision="", ms=1.0)


def test_layers_belong_to_the_block_in_which_they_begin() -> None:
    blocks = {"stem": "maxpool", "layer1.0": "layer1.0.relu", "layer1.1": "layer1.1.relu", "fc": "logits"}
    found = blocks_of_layers(
        [
            layer("input.held_1"),
            layer("conv1/WithoutBiases"),
            layer("layer1.0.conv1", "layer1.0.relu1"),
            layer("layer1.0.relu.quantize", "layer1.1.conv1"),
            layer("Multiply_9333"),
            layer("avgpool"),
            layer("logits"),
        ],
        blocks,
    )
    assert found == ["stem", "stem", "layer1.0", "layer1.0", "layer1.0", "fc", "fc"]
    assert blocks_of_layers([layer("Made up")], blocks) == ["stem"]


def block(name: str, ms: float, *, memory: float = 0.1, arithmetic: float = 0.2, **changes) -> BlockProfile:
    work = BlockWork(block=name, float_ops=1, int8_ops=0, weight_bytes=1, activation_bytes=1, layers=1)
    values = {
        "block": name, "ms": ms, "launches": 1, "reformat_ms": 0.0, "float_layers": (), "work": work,
        "memory_ms": memory, "arithmetic_ms": arithmetic,
    }  # fmt: skip
    return BlockProfile(**(values | changes))


def engine(precision: str, *blocks: BlockProfile, wall: float | None = None, layers=()) -> EngineProfile:
    facts = msgspec.structs.replace(bench_report({1: steady(1)}).engine, precision=precision)
    total = sum(one.ms for one in blocks)
    return EngineProfile(
        engine=facts, wall=steady(wall or total, noise=0), layers_ms=total, blocks=blocks, layers=layers
    )


def test_memory_bound_blocks_are_named_with_their_share() -> None:
    (found,) = findings([engine("fp32", block("a", 3.0, memory=2.9), block("b", 1.0, arithmetic=0.9))], RATES)
    assert found == "fp32: memory-bound blocks take 75 % of the time: a (3 ms)"


def test_reformats_launches_and_distance_are_named() -> None:
    copy = LayerProfile(name="copy", block="a", kind="reformat", implementation="", precision="", ms=1.0)
    far = block("a", 4.0, arithmetic=0.5)
    found = list(findings([engine("int8", far, wall=5.0, layers=(copy,))], RATES))
    assert "1 reformats" in found[0]
    assert "25 % of the time; the longest: copy" in found[0]
    assert "20 % of the call is spent outside of its 1 launches" in found[1]
    assert "blocks at 3 x their floor or more" in found[2]


def test_why_int8_gains_little_is_said() -> None:
    int8 = engine("int8", block("a", 1.0, launches=3, float_layers=("a.conv1",)), block("b", 1.0))
    fp32 = engine("fp32", block("a", 1.1), block("b", 3.0))
    found = "\n".join(findings([fp32, int8], RATES))
    assert "INT8 is 2.05 x as fast as fp32 as a whole" in found
    assert "multiplies INT8 only 2.0 x as fast" in found
    assert "blocks that gain less than 1.3 x from INT8: a (1 ms)" in found
    assert "run in floating point: a.conv1" in found
    assert "launches that INT8 has and fp32 does not have, by block: a 2" in found


def test_a_cpu_with_vnni_is_not_blamed_and_a_single_precision_not_compared() -> None:
    fast = msgspec.structs.replace(RATES, int8_ops_per_second=8e11)
    pair = [engine("fp32", block("a", 1.0)), engine("int8", block("a", 0.2))]
    assert list(findings(pair, fast))[-1] == "INT8 is 5.00 x as fast as fp32 as a whole"
    assert not any("INT8" in found for found in findings(pair[1:], RATES))


def older_version(directory: Path) -> None:
    """Take out of the report what versions up to 0.1 did not record."""
    report = json.loads((directory / "report.json").read_bytes())
    del report["work"]
    (directory / "report.json").write_text(json.dumps(report))


def test_work_is_read_from_the_graph_where_it_was_not_recorded(
    small_engines: dict[str, Path], tmp_path: Path, measured: ProfileReport
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(small_engines["int8"], copied)
    older_version(copied)
    model = onnx.load(copied / "model.onnx")
    recorded = [block.work for block in measured.engines[1].blocks]
    assert recorded == list(work_of(model, 1))
    assert [work.times(4) for work in recorded] == list(work_of(model, 4))
    with pytest.raises(
        EngineError, match=r"report\.json has"
    ):  # read from the graph, then the hash of the report is checked
        profile([copied], seconds=0.1, roofline=RATES)


def test_engines_of_different_networks_are_refused(small_engines: dict[str, Path], tmp_path: Path) -> None:
    make_engine(tmp_path / "other")
    shutil.copy(small_engines["int8"] / "report.json", tmp_path / "other")
    older_version(tmp_path / "other")
    with pytest.raises(UsageError, match="one network together"):
        profile([small_engines["int8"], tmp_path / "other"], roofline=RATES)


def test_a_batch_or_a_graph_that_is_not_there_is_refused(
    small_engines: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="choose from 1 to 4"):
        profile([small_engines["int8"]], batch=5, roofline=RATES)
    copied = tmp_path / "copy"
    shutil.copytree(small_engines["int8"], copied)
    older_version(copied)
    (copied / "model.onnx").unlink()
    with pytest.raises(EngineError, match=r"model\.onnx is not there"):
        profile([copied], roofline=RATES)

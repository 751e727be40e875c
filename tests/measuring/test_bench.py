"""``rescompile bench``; figures are whatever this machine gives."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from rescompile.backends.base import RunOptions
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.errors import BackendError, EngineError, UsageError
from rescompile.manifest import Batch, read_manifest
from rescompile.measuring import bench as module
from rescompile.measuring.bench import BenchReport, bench, contenders
from rescompile.measuring.cold_start import start_once
from rescompile.presenting.terminal.bench import lines
from rescompile.runtime.golden import golden_bytes, read_golden
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine, manifest
from tests.reports import report


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "e"
    make_engine(folder)
    (folder / "report.json").write_bytes(report(top1_engine=0.75, relative_rms=0.01).to_json())
    write_hashed_manifest(folder, read_manifest(folder))
    return folder


@pytest.fixture(scope="module")
def measured(directory: Path) -> BenchReport:
    return bench(directory, batches=[1, 8], seconds=0.05, starts=1)


def test_every_batch_size_has_percentiles_and_a_rate(measured: BenchReport) -> None:
    assert [result.batch for result in measured.batches] == [1, 8]
    for result in measured.batches:
        found = result.timing
        assert 0 < found.min <= found.p50 <= found.p90 <= found.p99
        assert result.images_per_second == pytest.approx(1e3 * result.batch / found.p50)
    assert measured.latency.batch == 1
    assert measured.best.images_per_second == max(r.images_per_second for r in measured.batches)


def test_starts_are_whole_processes(measured: BenchReport) -> None:
    for start in (*measured.cold, *measured.warm):
        assert start.process_seconds > start.load_seconds > 0
        assert start.first_seconds > 0
        assert start.peak_rss_bytes >= start.rss_bytes * 0.9 > 10_000_000


def test_the_report_names_engine_and_origin_and_comes_back_from_json(measured: BenchReport) -> None:
    assert (measured.engine.precision, measured.engine.top1, measured.engine.relative_rms) == (
        "fp32",
        0.75,
        0.01,
    )
    assert measured.engine.bytes > 1000
    assert {"cpu", "openvino", "python"} <= set(measured.origin.machine)
    assert msgspec.json.decode(measured.to_json(), type=BenchReport) == measured


def test_the_table_marks_the_best_batch_and_greps_well(measured: BenchReport) -> None:
    text = lines(measured)
    (marked,) = [line for line in text if "most images per second" in line]
    assert int(marked.split()[0]) == measured.best.batch
    assert [line.split()[0] for line in text if line.startswith(("cold", "warm"))] == ["cold", "warm"]


def test_starts_can_be_left_out(directory: Path) -> None:
    found = bench(directory, batches=[2], seconds=0.01, starts=0, threads=1)
    assert (found.cold, found.warm, found.origin.threads) == ((), (), 1)
    assert not [line for line in lines(found) if line.startswith("cold")]


def test_calls_at_the_same_time_share_one_time(directory: Path) -> None:
    found = bench(directory, batches=[2], seconds=0.01, starts=0, threads=2, hint="throughput")
    with load(directory, options=RunOptions(threads=2, hint="throughput")) as engine:
        assert found.requests == engine.parallel
    (result,) = found.batches
    assert result.images_per_second == pytest.approx(1e3 * 2 * found.requests / result.timing.p50)
    with load(directory) as engine:
        (two,) = contenders(engine, directory, [3], 2).values()
        right = two.call()
        assert right.shape == (6, 10)
        two.check(right)
        with pytest.raises(EngineError, match="wrong answers"):
            two.check(right * 1.5)
    text = lines(msgspec.structs.replace(found, requests=3))
    assert "each time is that of 3 calls at the same time" in text


def test_a_wrong_answer_has_no_time(directory: Path) -> None:
    with load(directory) as engine:
        one = contenders(engine, directory, [1, 6])
        for contender in one.values():
            right = contender.call()
            contender.check(right)
            with pytest.raises(EngineError, match=f"wrong answers at batch {len(right)}"):
                contender.check(right * 1.5)
            with pytest.raises(EngineError, match="says nothing"):
                contender.check(right * np.nan)


@pytest.mark.parametrize("batches", [[0], [9], [1, 99], []])
def test_batches_that_the_engine_does_not_take_are_refused(directory: Path, batches: list[int]) -> None:
    with pytest.raises(UsageError, match="choose from 1 to 8"):
        bench(directory, batches=batches, seconds=0.01, starts=0)


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        (Batch(1, 1, 1), [1]),
        (Batch(1, 1, 32), [1, 2, 4, 8, 16, 32]),
        (Batch(3, 5, 20), [3, 4, 8, 16, 20]),
        (Batch(1, 1, 1000), [1, 4, 8, 32, 128, 256, 1000]),
    ],
)
def test_batch_sizes_are_powers_of_two_between_the_ends_and_few(batch: Batch, sizes: list[int]) -> None:
    found = module._sizes(msgspec.structs.replace(manifest("fp32", "openvino"), batch=batch), None)
    assert found == sizes


def test_a_process_that_cannot_start_the_engine_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"could not start the engine.*EngineError"):
        start_once(tmp_path, {})


def test_golden_answers_that_do_not_fit_are_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(
        golden_bytes(np.zeros((0, 3, 16, 16), np.float32), np.zeros((0, 2), np.float32))
    )
    with pytest.raises(EngineError, match="does not fit the manifest"):
        read_golden(tmp_path, read_manifest(directory))


@pytest.mark.parametrize(
    ("asked", "given", "notes"),
    [
        (None, 1, ()),
        (2, 2, ()),
        (9, 2, ("this machine computes 2 calls at the same time, not the 9 of --streams",)),
    ],
)
def test_streams_that_the_machine_lacks_are_named(
    asked: int | None, given: int, notes: tuple[str, ...]
) -> None:
    assert module._note_on_streams(asked, given) == notes

"""The clock measures the stages of a build."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest

from rescompile import progress
from rescompile.progress import Silent, StageClock, peak_memory_bytes, reset_peak_memory
from rescompile.report import StageRecord

MEGABYTE = 1_000_000
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a process")


class Recorder(Silent):
    def __init__(self) -> None:
        self.events: list[str] = []

    def stage_started(self, name: str) -> None:
        self.events.append(f"started {name}")

    def stage_finished(self, record: StageRecord) -> None:
        self.events.append(f"finished {record.name}")

    def stage_failed(self, name: str) -> None:
        self.events.append(f"failed {name}")


def test_stages_are_recorded_in_their_order_with_wall_time() -> None:
    clock = StageClock()
    with clock.stage("load"):
        time.sleep(0.02)
    with clock.stage("build"):
        pass
    load, build = clock.records
    assert (load.name, build.name) == ("load", "build")
    assert load.seconds >= 0.02
    assert build.seconds >= 0


@on_linux
def test_the_peak_belongs_to_its_stage() -> None:
    clock = StageClock()
    # a mapping of its own, because an array may get memory that the process holds free already
    with clock.stage("large"), mmap.mmap(-1, 150 * MEGABYTE) as pages:
        for _ in range(150):
            pages.write(b"1" * MEGABYTE)
    with clock.stage("small"):
        pass
    large, small = clock.records
    assert large.peak_rss_bytes - small.peak_rss_bytes > 120 * MEGABYTE


def test_the_peak_is_in_bytes() -> None:
    assert 5 * MEGABYTE < peak_memory_bytes() < 100_000 * MEGABYTE


def test_without_proc_the_peak_of_the_whole_process_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reset_peak_memory()
    exact = peak_memory_bytes()
    monkeypatch.setattr(progress, "_STATUS", tmp_path / "missing")
    monkeypatch.setattr(progress, "_CLEAR_REFS", tmp_path / "missing" / "too")
    reset_peak_memory()
    assert peak_memory_bytes() >= exact * 0.99


def test_stages_do_not_nest() -> None:
    clock = StageClock()
    error = pytest.raises(RuntimeError, match="'inner' was started inside 'outer'")
    with error, clock.stage("outer"), clock.stage("inner"):
        pass
    assert clock.records == ()


def test_a_name_is_used_once() -> None:
    clock = StageClock()
    with clock.stage("load"):
        pass
    with pytest.raises(RuntimeError, match="'load' ran already"), clock.stage("load"):
        pass


def test_a_stage_that_raises_is_no_record_and_its_error_goes_on() -> None:
    observer = Recorder()
    clock = StageClock(observer)
    with pytest.raises(ZeroDivisionError), clock.stage("build"):
        _ = 1 / 0
    assert clock.records == ()
    assert observer.events == ["started build", "failed build"]
    with clock.stage("build"):
        pass
    assert [record.name for record in clock.records] == ["build"]


def test_the_observer_hears_of_every_stage() -> None:
    observer = Recorder()
    clock = StageClock(observer)
    for name in ("load", "build"):
        with clock.stage(name):
            pass
    assert observer.events == ["started load", "finished load", "started build", "finished build"]


def test_an_interrupted_stage_is_told_to_the_observer() -> None:
    observer = Recorder()
    with pytest.raises(KeyboardInterrupt), StageClock(observer).stage("build"):
        raise KeyboardInterrupt
    assert observer.events == ["started build", "failed build"]

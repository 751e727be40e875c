"""A run that survives processes which die, hang or take too long."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_kernels
from benchmarks.gpu.context import Context, DeviceLost
from benchmarks.gpu.options import Options
from benchmarks.gpu.peers import PeerProcesses
from benchmarks.gpu.report import Report
from tests.benchmarks.gpu import scripted
from tests.benchmarks.gpu.contexts import context_for

CPU = torch.device("cpu")


def supervised(worker: Callable[..., None], tmp_path: Path, seconds: float = 600.0) -> Report:
    report = Report({})
    options = Options("cpu", True, (2,), {}, tmp_path, tmp_path)
    peers = PeerProcesses(tmp_path, "cpu", True, [])
    end = time.monotonic() + seconds
    supervisor = gpu_kernels.Supervisor(report, options, peers, tmp_path / "out.json", end)
    supervisor.worker = worker
    supervisor.run()
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["failed"] == report.failed
    return report


def test_cases_that_kill_their_process_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    report = supervised(scripted.dying, tmp_path)
    assert report.failed == [
        {"name": "second", "reason": "its process ended with code 139"},
        {"name": "third", "reason": "illegal access"},
    ]
    assert [case["name"] for case in report.sections["cases"]] == ["first", "fourth"]
    assert report.wrong() == ["second", "third"]


def test_a_case_without_an_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "HANG", 1.0)
    assert supervised(scripted.hanging, tmp_path).failed == [
        {"name": "slow", "reason": "no answer within 1 s"}
    ]


def test_time_that_runs_out_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "GRACE", 0.0)
    take = gpu_kernels.Supervisor._take

    def late(self: gpu_kernels.Supervisor, *message: Any) -> None:
        take(self, *message)
        self.end = time.monotonic()  # the time is up when the case has begun

    monkeypatch.setattr(gpu_kernels.Supervisor, "_take", late)
    report = supervised(scripted.hanging, tmp_path)
    assert report.failed == []
    assert report.skipped == [{"name": "slow", "reason": gpu_kernels.OUT_OF_TIME}]


def test_a_case_that_raises_is_reported_and_not_raised(tmp_path: Path, capsys: Any) -> None:
    sent: list[tuple[Any, ...]] = []
    context_for(tmp_path, sent).run("broken", "cases", lambda: {"x": 1 // 0})
    kinds = [message[0] for message in sent]
    assert kinds == ["begin", "failed", "ended"]
    assert sent[1] == ("failed", "kernels: broken", "ZeroDivisionError: integer division or modulo by zero")


def test_nothing_starts_when_a_phase_has_used_its_time(tmp_path: Path) -> None:
    sent: list[tuple[Any, ...]] = []
    context = context_for(tmp_path, sent)
    context.deadline = time.monotonic() - 1
    context.run("late", "cases", lambda: pytest.fail("it ran"))
    assert sent == [("skipped", "kernels: late", "no time left for this phase")]


def test_a_lost_device_is_raised_past_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_for(tmp_path, [])

    def lost(_: Context) -> None:
        raise DeviceLost("an illegal memory access")

    monkeypatch.setattr(Context, "require_device", lost)
    with pytest.raises(DeviceLost):
        context.run("case", "cases", lambda: None)


def test_phases_hand_unused_time_on_and_take_none_from_later_ones() -> None:
    ends = gpu_kernels.deadlines(["network", "correctness"], 1000.0, 100.0)
    assert list(ends) == ["correctness", "network"]
    assert ends["network"] == pytest.approx(1097.0)
    assert ends["correctness"] == pytest.approx(1000 + 97 * 22 / 57)

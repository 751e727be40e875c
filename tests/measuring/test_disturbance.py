"""Notes on disturbances; the machine is a folder of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rescompile.measuring import disturbance
from rescompile.measuring.disturbance import Watch, look
from tests.measuring.scripted import of_rounds, steady

TICKS = os.sysconf("SC_CLK_TCK")
QUIET = {"A": steady(10)}


def machine(root: Path, *, busy: float = 0, stolen: float = 0, mhz: float = 2000, governor: str = "") -> Path:
    """A machine that has been busy and robbed for so many processor seconds."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    stat = f"cpu  {busy * TICKS:.0f} 0 0 0 0 0 0 {stolen * TICKS:.0f} 0 0\n"
    (root / "proc/stat").write_text(stat)
    (root / "proc/loadavg").write_text("1.50 1.0 1.0 1/1 1\n")
    (root / "proc/cpuinfo").write_text(f"cpu MHz\t\t: {mhz}\n")
    if governor:
        folder = root / "sys/devices/system/cpu/cpu0/cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling_governor").write_text(governor + "\n")
    return root


def notes(root: Path, **later: float) -> list[str]:
    watch = Watch(machine(root))
    machine(root, **later)
    return watch.notes(QUIET)


def test_a_quiet_machine_has_no_notes(tmp_path: Path) -> None:
    assert notes(tmp_path) == []


@pytest.mark.parametrize(
    ("later", "because", "remedy"),
    [
        ({"busy": 10_000}, "other processes kept", "close other programs"),
        ({"stolen": 10_000}, "the hypervisor gave", "a machine of its own"),
        ({"mhz": 3000}, "the CPU clock went from 2000 to 3000 MHz", "warm up"),
    ],
)
def test_each_disturbance_has_its_note_and_its_remedy(tmp_path, later, because, remedy) -> None:
    (note,) = notes(tmp_path, **later)
    assert note.startswith("may be unstable because")
    assert because in note
    assert remedy in note


def test_a_governor_that_saves_power_is_named(tmp_path: Path) -> None:
    watch = Watch(machine(tmp_path, governor="powersave"))
    assert "the CPU frequency governor is 'powersave'" in watch.notes(QUIET)[0]
    machine(tmp_path, governor="performance")
    assert Watch(tmp_path).notes(QUIET) == []


def test_load_average_stands_in_where_processor_times_are_hidden(tmp_path: Path) -> None:
    (machine(tmp_path) / "proc/stat").unlink()
    assert "the load average was 1.5" in Watch(tmp_path).notes(QUIET)[0]


def test_a_system_without_proc_says_nothing(tmp_path: Path) -> None:
    moment = look(tmp_path)
    assert (moment.busy_cpu, moment.stolen_cpu, moment.load, moment.clocks_mhz) == (None, None, None, ())
    assert Watch(tmp_path).notes(QUIET) == []


def test_own_work_is_no_disturbance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(machine(tmp_path))
    machine(tmp_path, busy=100)
    before = os.times()
    ours = os.times_result((before.user + 100, *before[1:]))
    monkeypatch.setattr(disturbance.os, "times", lambda: ours)
    assert watch.notes(QUIET) == []


def test_a_wide_spread_and_a_drift_are_named_with_their_contender(tmp_path: Path) -> None:
    watch = Watch(machine(tmp_path))
    wide, drifting = watch.notes(
        {"W": steady(10, noise=0.2), "Q": steady(10), "D": of_rounds([10, 10, 11, 11])}
    )
    assert wide.startswith("W")
    assert "Q" not in wide.split(" may be ")[0]
    assert "middle 80 %" in wide
    assert drifting.split(" may be ")[0] == "D"
    assert "10 % slower" in drifting
    assert "10 % faster" in Watch(tmp_path).notes({"F": of_rounds([10, 10, 9, 9])})[-1]


def test_of_many_contenders_three_are_named(tmp_path: Path) -> None:
    watch = Watch(machine(tmp_path))
    (note,) = watch.notes({name: steady(10, noise=0.2) for name in "ABCDE"})
    assert note.startswith("A, B, C and 2 more may be unstable")


def test_this_machine_can_be_looked_at() -> None:
    moment = look()
    assert moment.own_cpu > 0
    assert moment.busy_cpu is None or moment.busy_cpu > moment.own_cpu / 2

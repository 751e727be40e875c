"""Disturbances of a measurement: other load, a changing clock, unstable times, each with a remedy."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rescompile.measuring.timing import Timing

UNSTABLE_SPREAD = 0.10
"""Reported if the middle 80 % of the runs are wider than this share of the median."""
DRIFT = 0.05
"""Reported if the first and second half of the rounds differ by more than this."""
OTHERS_SHARE = 0.10
"""Reported if other processes, or the hypervisor, take more than this many cores."""
CLOCK_CHANGE = 0.10


@dataclass(frozen=True)
class Moment:
    """State of the machine at one time; what the system does not tell is None or empty."""

    seconds: float
    own_cpu: float
    """Processor seconds of this process and its ended children."""
    busy_cpu: float | None
    """Processor seconds of all processes, this one included."""
    stolen_cpu: float | None
    """Seconds for which the hypervisor ran something else."""
    load: float | None
    """Processes that wanted to run, mean of the last minute."""
    clocks_mhz: tuple[float, ...]
    governors: frozenset[str]


class Watch:
    """Compares the machine when it is made with the machine when ``notes`` is called."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._begin = look(root)

    def notes(self, results: Mapping[str, Timing]) -> list[str]:
        """Reasons why ``results``, measured since, may be unstable; empty where there is none."""
        return [*_disturbances(self._begin, look(self._root)), *_instabilities(results)]


def look(root: Path = Path("/")) -> Moment:
    """The state of the machine now, read from ``root``/proc and ``root``/sys."""
    own = os.times()
    busy, stolen = _processor_seconds(root / "proc/stat")
    try:
        load: float | None = float((root / "proc/loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        load = None
    return Moment(
        seconds=time.monotonic(),
        own_cpu=own.user + own.system + own.children_user + own.children_system,
        busy_cpu=busy,
        stolen_cpu=stolen,
        load=load,
        clocks_mhz=_clocks(root / "proc/cpuinfo"),
        governors=_governors(root / "sys/devices/system/cpu"),
    )


def _processor_seconds(stat: Path) -> tuple[float | None, float | None]:
    """Busy and stolen seconds of all processors since the machine started."""
    try:
        fields = [int(word) for word in stat.read_text().splitlines()[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = fields[:8]
    except (OSError, ValueError, IndexError):
        return None, None
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def _clocks(cpuinfo: Path) -> tuple[float, ...]:
    try:
        lines = cpuinfo.read_text().splitlines()
        return tuple(float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz"))
    except (OSError, ValueError):
        return ()


def _governors(folder: Path) -> frozenset[str]:
    found = set()
    for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(path.read_text().strip())
        except OSError:
            continue
    return frozenset(found)


def _disturbances(begin: Moment, end: Moment) -> Iterator[str]:
    elapsed = max(end.seconds - begin.seconds, 1e-9)
    quiet = "close other programs and measure again"
    if begin.busy_cpu is not None and end.busy_cpu is not None:
        others = (end.busy_cpu - begin.busy_cpu - (end.own_cpu - begin.own_cpu)) / elapsed
        if others > OTHERS_SHARE:
            yield _unstable(f"other processes kept {others:.1f} cores busy meanwhile", quiet)
    elif begin.load is not None and begin.load > OTHERS_SHARE * (os.cpu_count() or 1):
        yield _unstable(f"the load average was {begin.load:.1f} when it began", quiet)
    if begin.stolen_cpu is not None and end.stolen_cpu is not None:
        stolen = (end.stolen_cpu - begin.stolen_cpu) / elapsed
        if stolen > OTHERS_SHARE:
            reason = f"the hypervisor gave {stolen:.1f} cores to other machines"
            yield _unstable(reason, "measure on a machine of its own")
    if slow := sorted(begin.governors - {"performance"}):
        reason = f"the CPU frequency governor is '{slow[0]}'"
        yield _unstable(reason, "set it to 'performance' (cpupower)")
    if begin.clocks_mhz and end.clocks_mhz:
        before, after = max(begin.clocks_mhz), max(end.clocks_mhz)
        if abs(after - before) > CLOCK_CHANGE * before:
            reason = f"the CPU clock went from {before:.0f} to {after:.0f} MHz"
            yield _unstable(reason, "let the machine warm up first")


def _instabilities(results: Mapping[str, Timing]) -> Iterator[str]:
    wide = {name: found.spread for name, found in results.items() if found.spread > UNSTABLE_SPREAD}
    if wide:
        share = 100 * max(wide.values())
        reason = f"the middle 80 % of the runs spread over up to {share:.0f} % of the median"
        yield f"{_some(wide)} {_unstable(reason, 'measure longer, on an idle machine')}"
    drifts = {name: _drift(found) for name, found in results.items()}
    drifted = {name: drift for name, drift in drifts.items() if abs(drift) > DRIFT}
    if drifted:
        worst = max(drifted.values(), key=abs)
        change = f"{100 * abs(worst):.0f} % {'slower' if worst > 0 else 'faster'}"
        reason = f"the second half of the rounds was up to {change} than the first"
        yield f"{_some(drifted)} {_unstable(reason, 'measure longer')}"


def _some(names: Iterable[str]) -> str:
    """The first three of ``names``, and how many more."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(every[:3]) + more


def _drift(found: Timing) -> float:
    """How much slower the second half of the rounds was than the first, as a share; 0 where they are too few."""
    half = len(found.rounds) // 2
    if half < 2:
        return 0.0
    return statistics.median(found.rounds[-half:]) / statistics.median(found.rounds[:half]) - 1


def _unstable(reason: str, remedy: str) -> str:
    return f"may be unstable because {reason}: {remedy}"

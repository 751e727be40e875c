"""One slice of a visit to a GPU: ``python -m benchmarks.gpu visit --slice 1|2|3 --folder FOLDER``

    1   590 s   a prebuilt engine against its golden answers; tiles of long reductions; correctness; training and
                inference beside the peers
    2   400 s   tuning and blocks; ncu on four kernels and compute-sanitizer on a small block
    3   480 s   training and inference again, by the tuning table that slice 2 left in the folder

Every part is a process of its own, writes its figures to the folder as soon as it knows them, and is ended when its
time is over. ``visit-<slice>.json`` says what each part came to. Exit code: 0 right, 1 a part was wrong, failed or
measured nothing, 2 wrong usage.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescompile.files import atomic_write, writing

ROOT = Path(__file__).resolve().parents[2]
SECONDS = {1: 590.0, 2: 400.0, 3: 480.0}
ENGINE_SECONDS = 60.0
PROFILE_SECONDS = 25.0
"""For one kernel under ncu, or one block under compute-sanitizer."""
GRACE = 10.0
"""Seconds before the slice's end at which its last part has ended."""
KERNELS = ("moments-64-256", "3x3-bn-relu-128", "wgrad-bn-relu-128", "block-gradient-256")
NOTHING = "it measured nothing"
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)


@dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    command: tuple[str, ...]
    seconds: float
    output: str
    """The file of the folder that holds its figures."""
    text: bool = False
    """Whether what it prints is its figures."""


@dataclass(frozen=True)
class Visit:
    """What to do, and where."""

    slice: int
    folder: Path
    engine: Path | None = None
    seconds: float | None = None
    """For the whole slice; the page's by default."""
    extra: tuple[str, ...] = field(default=())
    """More options for the kernels' script."""

    def parts(self) -> list[Part]:
        """The processes in order; each has its own seconds, whether the one before used all of its own or not."""
        total = (self.seconds or SECONDS[self.slice]) - GRACE
        if self.slice == 3:
            return [self._kernels("network", total)]
        if self.slice == 2:
            tools = [*(_ncu(name) for name in KERNELS), _sanitizer()]
            share = min(sum(tool.seconds for tool in tools), total / 2)
            each = [Part(t.name, t.command, share / len(tools), t.output, text=True) for t in tools]
            return [self._kernels("tune,blocks", total - share), *each]
        engine = [] if self.engine is None else [self._engine(self.engine, min(ENGINE_SECONDS, total / 4))]
        rest = total - sum(part.seconds for part in engine)
        return [*engine, self._kernels("residency,correctness,network", rest)]

    def _engine(self, engine: Path, seconds: float) -> Part:
        output = f"engine-{self.slice}.json"
        command = (
            sys.executable,
            "-m",
            "benchmarks.gpu.engine",
            str(engine),
            "--output",
            str(self.folder / output),
        )
        return Part("engine", command, seconds, output)

    def _kernels(self, phases: str, seconds: float) -> Part:
        output = f"kernels-{self.slice}.json"
        command = (
            *(sys.executable, "benchmarks/gpu_kernels.py", "--phases", phases, "--batch", "128", "256"),
            *("--budget-seconds", f"{seconds - GRACE:.0f}", "--output", str(self.folder / output)),
            *self.extra,
        )
        return Part("kernels", command, seconds, output)


def _ncu(name: str) -> Part:
    command = (
        *("ncu", "--csv", "--page", "raw", "--launch-skip-before-match", "0", "--metrics", ",".join(METRICS)),
        *(sys.executable, "-m", "benchmarks.gpu.profiled", name),
    )
    return Part(f"ncu {name}", command, PROFILE_SECONDS, f"ncu-{name}.csv", text=True)


def _sanitizer() -> Part:
    command = (
        "compute-sanitizer",
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "benchmarks.gpu.profiled",
        "small-block",
    )
    return Part("compute-sanitizer", command, PROFILE_SECONDS, "sanitizer.txt", text=True)


def run(visit: Visit) -> bool:
    """Run every part; whether all were right and measured something."""
    with writing(visit.folder):
        visit.folder.mkdir(parents=True, exist_ok=True)
    began, done = time.monotonic(), list[dict[str, Any]]()

    def write() -> None:
        body = {"slice": visit.slice, "seconds": round(time.monotonic() - began, 1), "parts": done}
        atomic_write(visit.folder / f"visit-{visit.slice}.json", (json.dumps(body, indent=1) + "\n").encode())

    for part in visit.parts():
        (visit.folder / part.output).unlink(missing_ok=True)  # figures of an earlier visit are not this one's
        entry: dict[str, Any] = {"name": part.name, "output": part.output, "result": "under way"}
        done.append(entry)
        write()
        print(f"{part.name}: {part.seconds:.0f} s: {' '.join(part.command)}", flush=True)
        started = time.monotonic()
        entry["result"] = _result(part, visit.folder)
        entry["seconds"] = round(time.monotonic() - started, 1)
        write()
        print(f"{part.name}: {entry['result']}", flush=True)
    return all(entry["result"] == "right" for entry in done)


def _result(part: Part, folder: Path) -> str:
    """``right``, or what is wrong; figures that were written count whatever became of the process."""
    try:
        if part.text:
            with (folder / part.output).open("wb") as file:
                code = _code(part, file)
        else:
            code = _code(part, None)
    except OSError as error:
        return f"{part.command[0]} cannot be started: {error.strerror}"
    if code is None:
        return f"ended after its {part.seconds:.0f} s; {_measured(folder / part.output)}"
    if code:
        return f"exit code {code}; {_measured(folder / part.output)}"
    return "right" if _measured(folder / part.output) != NOTHING else NOTHING


def _code(part: Part, output: Any) -> int | None:
    """The exit code, or None where it had to be ended."""
    process = subprocess.Popen(part.command, cwd=ROOT, stdout=output, stdin=subprocess.DEVNULL)
    try:
        return process.wait(part.seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(GRACE / 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def _measured(path: Path) -> str:
    return f"see {path.name}" if path.is_file() and path.stat().st_size else NOTHING

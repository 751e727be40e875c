"""Are the fused kernels right on this GPU, and how fast are they? One command, under nine minutes, raw figures in JSON.

    python benchmarks/gpu_kernels.py [--output FILE] [--budget-seconds 540] [--batch 32 128 256]

Correctness comes first; then tiles are tuned; then operations, blocks and whole networks are timed beside cuDNN, eager
PyTorch and ``torch.compile``. benchmarks/README.md says what the figures mean. The results are
written anew after each one. Exit code: 0 all right, 1 something gave a wrong result or failed or nothing was measured,
2 wrong usage.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu import worker  # noqa: E402 - the path comes first
from benchmarks.gpu.environment import default_output  # noqa: E402
from benchmarks.gpu.networks import FULL, TINY  # noqa: E402
from benchmarks.gpu.options import Options  # noqa: E402
from benchmarks.gpu.peers import PeerProcesses, inference_batch, priorities  # noqa: E402
from benchmarks.gpu.phase_blocks import compiled_blocks  # noqa: E402
from benchmarks.gpu.report import Report, as_text, bars_for  # noqa: E402
from benchmarks.gpu.workloads import Workload  # noqa: E402

SHARES = {"residency": 6, "correctness": 22, "tune": 18, "kernels": 12, "blocks": 10, "network": 35}
"""Parts of the time. A phase that ends early leaves the rest to the next; nothing is taken from a later one."""
USABLE = 0.97
"""Share of the budget that phases may use; the rest is for the last case and for ending."""
HANG = 150.0
"""Seconds without a word in the middle of a case, after which its process is ended."""
GRACE = 15.0
"""Seconds after the budget in which a case may still end."""
MOST_RESTARTS = 20
OUT_OF_TIME = "the whole time was used up"


class Supervisor:
    """Starts workers, collects their results, and goes on when one crashes."""

    def __init__(
        self, report: Report, options: Options, peers: PeerProcesses, output: Path | None, end: float
    ) -> None:
        self.report, self.options, self.peers, self.output = report, options, peers, output
        self.end = end
        """End of the run by ``time.monotonic``."""
        self.finished: set[str] = set()
        self.under_way: str | None = None
        self.heard = time.monotonic()
        self.ended = False
        self.lost = False
        """A worker said that its GPU answers no more."""
        self.restarts = 0
        self.worker: Callable[..., None] = worker.main
        """The function that a worker process runs."""

    def run(self) -> None:
        """Start workers until one has done all that there is, or time is up."""
        try:
            while not self.ended and time.monotonic() < self.end:
                self._one_worker()
        finally:
            self.peers.stop()
            self._save()

    def _one_worker(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        arguments = (theirs, self.options, self.finished, self.report.ceilings)
        process = context.Process(target=self.worker, args=arguments, daemon=False)
        process.start()
        theirs.close()
        self.heard = time.monotonic()
        reason = self._listen(ours, process)
        process.join(2.0 if reason is None else 0.0)
        if process.is_alive():
            process.kill()
            process.join()
        self._conclude(reason or f"its process ended with code {process.exitcode}")

    def _conclude(self, reason: str) -> None:
        """A worker has ended: blame the case that it was at, and see whether another one may go on."""
        self.restarts += 1
        under_way, self.under_way = self.under_way, None
        if time.monotonic() >= self.end:
            self.ended = True
            if under_way is not None:
                self.report.skipped.append({"name": under_way, "reason": OUT_OF_TIME})
        elif under_way is not None:
            self._fail(under_way, reason)
        elif not self.ended and not self.lost:
            self._fail("the run", reason)
            self.ended = True  # a worker that dies between cases would do so again
        self.lost = False
        if self.restarts > MOST_RESTARTS and not self.ended:
            self._fail("the run", f"{self.restarts} processes have lost the GPU")
            self.ended = True

    def _listen(self, connection: Connection, process: BaseProcess) -> str | None:
        """Take messages until the worker has ended; why it must be ended, or None."""
        while True:
            self.peers.poll()
            try:
                if connection.poll(0.5):
                    self._take(*connection.recv())
                    continue
            except (EOFError, ConnectionError):
                return None
            now = time.monotonic()
            if now > self.end + GRACE:
                return OUT_OF_TIME
            if self.under_way is not None and now - self.heard > HANG:
                return f"no answer within {HANG:.0f} s"
            if not process.is_alive() and not connection.poll():
                return None

    def _take(self, kind: str, *values: Any) -> None:
        self.heard = time.monotonic()
        report = self.report
        if kind == "environment":
            report.environment = values[0]
            self.output = self.output or default_output(values[0])
        elif kind == "ceilings":
            report.ceilings = values[0]
            self._save()
        elif kind == "begin":
            self.under_way = values[0]
            self.finished.add(values[0])
            print(f"{self.end - self.heard:5.0f} s left  {values[0]}", flush=True)
        elif kind == "ended":
            self.under_way = None
        elif kind == "result":
            report.sections[values[0]].append(values[1])
            self._save()
        elif kind == "skipped":
            report.skipped.append({"name": values[0], "reason": values[1]})
        elif kind == "failed":
            self._fail(*values)
        elif kind == "compile failures":
            report.compile_failures = list(dict.fromkeys([*report.compile_failures, *values[0]]))
        elif kind == "phase":
            report.phases.append({"name": values[0], "seconds": values[1]})
        elif kind == "lost":
            print(f"the GPU answers no more ({values[0]}): going on in a new process", flush=True)
            self.lost = True
        elif kind == "end":
            self.ended = True

    def _fail(self, name: str, reason: str) -> None:
        if all(entry["name"] != name for entry in self.report.failed):
            self.report.failed.append({"name": name, "reason": reason})

    def _save(self) -> None:
        if self.output is not None:
            self.report.write(self.output)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    started = time.monotonic()
    parser = _parser()
    asked = parser.parse_args(arguments)
    phases = list(dict.fromkeys(asked.phases.split(",")))
    if unknown := [phase for phase in phases if phase not in SHARES]:
        parser.error(f"--phases {unknown[0]}: choose from {', '.join(SHARES)}")
    if min(asked.batch) < 2:
        parser.error(
            "--batch: batch norm trains on two images or more; batch 1 is timed for inference anyway"
        )
    device = _device(parser, asked.device)
    folder = Path(tempfile.mkdtemp(prefix="gpu-kernels-"))
    try:
        report, output = _run(asked, phases, device, folder, started)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(as_text(report))
    print(f"written to {output}")
    if not report.measured():
        print("nothing was measured")
    raise SystemExit(0 if report.measured() and not report.wrong() else 1)


def _run(
    asked: argparse.Namespace, phases: list[str], device: str, folder: Path, started: float
) -> tuple[Report, Path | None]:
    end = started + asked.budget_seconds
    scale = TINY if asked.tiny else FULL
    workloads = _compiled_workloads(asked.batch, phases, device, compiled_blocks(scale))
    options = Options(
        device=device,
        tiny=asked.tiny,
        batches=tuple(asked.batch),
        deadlines=deadlines(phases, started, asked.budget_seconds),
        folder=folder,
        tables=(asked.output.parent if asked.output else folder) / "tables",
        commit=asked.commit,
        only=asked.only,
        peers=tuple(workload.name for workload in workloads),
    )
    bars = bars_for(max(asked.batch), inference_batch(asked.batch))
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    report = Report(told, bars=bars)
    peers = PeerProcesses(folder, device, asked.tiny, workloads)
    supervisor = Supervisor(report, options, peers, asked.output, end)
    supervisor.run()
    if supervisor.output is not None and not asked.output and options.tables.is_dir():
        kept = supervisor.output.with_suffix(".tables")
        shutil.copytree(options.tables, kept, dirs_exist_ok=True)
    return report, supervisor.output


def deadlines(phases: Sequence[str], started: float, budget: float) -> dict[str, float]:
    """When each phase ends, in the order in which they run."""
    ordered = [phase for phase in SHARES if phase in phases]
    whole = sum(SHARES[phase] for phase in ordered)
    ends = accumulate(SHARES[phase] for phase in ordered)
    return {phase: started + USABLE * budget * end / whole for phase, end in zip(ordered, ends, strict=True)}


def _compiled_workloads(
    batches: Sequence[int], phases: Sequence[str], device: str, blocks: Sequence[str]
) -> list[Workload]:
    """Workloads that peers compile: those that the phases need; on a CPU one, to try the connection to it."""
    kinds = {"network": {"train", "infer"}, "blocks": {"block"}}
    wanted = set().union(*(kinds.get(phase, set()) for phase in phases))
    found = [workload for workload in priorities(batches, blocks) if workload.kind in wanted]
    return found if device == "cuda" else [workload for workload in found if workload.kind == "infer"][:1]


def _device(parser: argparse.ArgumentParser, asked: str | None) -> str:
    # asked of the driver in passing: the worker alone makes a context on the GPU
    from torch.cuda import device_count

    if asked == "cuda" and not device_count():
        parser.error("--device cuda: torch sees no GPU; --device cpu --tiny tries the code without one")
    if asked is None and not device_count():
        parser.error("torch sees no GPU; --device cpu --tiny tries the code without one")
    return asked or "cuda"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: benchmarks/results/<device>/<date>-<commit>.json",
    )
    parser.add_argument(
        "--budget-seconds", type=float, default=540.0, metavar="S", help="time for the whole run (540)"
    )
    parser.add_argument(
        "--phases", default=",".join(SHARES), help="the phases to run, separated by commas (default: all)"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[32, 128, 256], metavar="N", help="images (32 128 256)"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the code, not the GPU")
    parser.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="only cases whose name matches, such as 'layer1.1*' or 'train-*'",
    )
    parser.add_argument("--commit", help="the commit to record if this is not a checkout")
    return parser


if __name__ == "__main__":
    main()

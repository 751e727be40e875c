"""All GPU measurements in one call of at most nine minutes: ``python -m benchmarks.gpu_suite``

Runs the kernels' script (``benchmarks/gpu_kernels.py``), then the engines' (``benchmarks.gpu_engines``), each in a
process of its own with its share of the time, and writes the raw results of both. Exit code: 0 right, 1 a part found
something wrong, failed or ran out of time, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
BUDGET_SECONDS = 520.0
"""Below nine minutes by what starting and ending take."""
KERNELS_SHARE = 0.6
GRACE = 15.0
"""Seconds after its share in which a part may still write its results."""


def parts(budget: float, folder: Path | None, *, tiny: bool) -> list[tuple[str, list[str], float]]:
    """Name, command and seconds of each part."""
    python = sys.executable
    kernels = [python, "benchmarks/gpu_kernels.py", "--budget-seconds", f"{budget * KERNELS_SHARE:.0f}"]
    rest = budget * (1 - KERNELS_SHARE)
    engines = [python, "-m", "benchmarks.gpu_engines", "--budget-seconds", f"{0.75 * rest:.0f}"]
    if tiny:
        kernels += [
            "--device",
            "cpu",
            "--tiny",
            "--batch",
            "2",
            "--phases",
            "kernels",
            "--only",
            "*layer1.0.conv1*",
        ]
        engines += ["--tiny"]
    if folder is not None:
        kernels += ["--output", str(folder / "kernels.json")]
        engines += ["--output", str(folder / "engines.json")]
    return [("kernels", kernels, budget * KERNELS_SHARE), ("engines", engines, rest)]


def run(commands: Sequence[tuple[str, list[str], float]]) -> dict[str, str]:
    """Run each part after the other; the name of each one that did not end well, with the reason."""
    bad = {}
    for name, command, seconds in commands:
        began = time.monotonic()
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        try:
            code = subprocess.run(command, cwd=ROOT, check=False, timeout=seconds + GRACE).returncode
        except subprocess.TimeoutExpired:
            bad[name] = f"it did not end within its {seconds:.0f} seconds"
            continue
        if code:
            bad[name] = f"exit code {code}"
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return bad


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m benchmarks.gpu_suite"
    )
    parser.add_argument("--budget-seconds", type=float, default=BUDGET_SECONDS, help="for both parts (520)")
    parser.add_argument(
        "--folder", type=Path, help="where to write; benchmarks/results/<device>/ unless told"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="try the code without a GPU; its times mean nothing"
    )
    asked = parser.parse_args(arguments)
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    folder = None if asked.folder is None else asked.folder.resolve()
    bad = run(parts(asked.budget_seconds, folder, tiny=asked.tiny))
    for name, reason in bad.items():
        print(f"{name}: {reason}", file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

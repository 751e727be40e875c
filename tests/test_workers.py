"""A worker that dies neither hides the test that it died of nor keeps the run from ending."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist", reason="workers are pytest-xdist's")
ROOT = Path(__file__).parents[1]
DYING = "import os, signal\ndef test_it_dies(): os.kill(os.getpid(), signal.SIGALRM)\n"


def test_a_worker_that_dies_ends_the_run(tmp_path: Path) -> None:
    for number in range(40):
        code = DYING if number == 20 else "def test_it_passes(): pass\n"
        (tmp_path / f"test_{number}.py").write_text(code, "utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "tests.workers", "-p", "no:cacheprovider"]
    command += ["-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "exit code -14" in done.stdout
    assert "crashed while running 'test_20.py::test_it_dies'" in done.stdout

"""The process of the command line ends with the right code, all of its output and what was asked for at exit."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from rescompile.cli.process import run
sys.argv = ["rescompile", *sys.argv[1:]]
atexit.register(lambda: print("asked for at exit"))
run()
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, "rescompile "),
        (["inspect", "missing"], 1, ""),
        (["--unknown"], 2, ""),
    ],
)
def test_a_process_ends_with_its_code_and_its_output(words: list[str], code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(said)
    assert done.stdout.endswith("asked for at exit\n")
    assert ("error" in done.stderr.lower()) == (code != 0)

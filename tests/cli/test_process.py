"""The process of the command line ends with the right code, all of its output and what was asked for at exit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rescompile.cli import process

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


def test_threads_sleep_soon_while_they_wait_unless_the_user_chose() -> None:
    program = (
        "import os, rescompile.cli.process as process\n"
        "process.main = lambda: print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "process.run()"
    )
    plain = {name: value for name, value in os.environ.items() if name not in process._WAITING}
    for chosen, count in (
        ({}, "10000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ({"GOMP_SPINCOUNT": "9"}, "9"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**plain, **chosen},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == count

"""Warnings on the command line are sentences without a line of code."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, warnings
from rescompile.cli import app
def warn():
    warnings.warn({kind}("the form is avx2"))
app.app.command("warn")(warn)
sys.argv = ["rescompile", "warn"]
app.main()
"""


def stderr(kind: str) -> str:
    program = PROGRAM.format(kind=kind)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr


def test_a_warning_to_the_user_is_a_note() -> None:
    assert stderr("UserWarning") == "note: the form is avx2\n"


def test_what_only_programmers_should_know_is_left_out() -> None:
    assert stderr("FutureWarning") == ""

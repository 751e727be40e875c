"""Commands of rescompile in this process: a new one takes three seconds to import torch."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from rescompile.cli import app


def call(*words: object) -> int:
    """The exit code of ``rescompile`` with ``words``, which prints as it does for a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rescompile", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
    return int(stop.value.code or 0)


def sent(*words: object, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit code, standard output and errors of ``rescompile``, which wrote them to streams as a process has them."""
    raw = io.BytesIO(), io.BytesIO()
    out, err = (io.TextIOWrapper(each, encoding, write_through=True) for each in raw)
    with redirect_stdout(out), redirect_stderr(err):
        code = call(*words)
        sys.stdout.flush(), sys.stderr.flush()
        return code, *(each.getvalue().decode(encoding) for each in raw)


def succeeds(*words: object) -> str:
    """What ``rescompile`` with ``words``, which must succeed, prints to standard output."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = call(*words)
    assert code == 0, f"rescompile {' '.join(map(str, words))}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue()

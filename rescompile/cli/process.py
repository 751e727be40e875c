"""The command line as a process of its own."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

from rescompile.cli.app import main


def run() -> None:
    """Run ``main`` and end the process with its exit code.

    What was asked for at exit is done and both streams are flushed, but the libraries are not taken apart: the system
    takes back their memory at once, while PyTorch and OpenVINO need most of a second for it after a build.
    """
    code: object = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
        if not isinstance(code, int):
            raise
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

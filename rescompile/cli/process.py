"""The command line as a process of its own."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

from rescompile.cli.app import main

_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
"""Variables by which users choose how OpenMP's threads wait."""


def run() -> None:
    """Run ``main`` and end the process with its exit code.

    PyTorch's threads wait for each other for some microseconds at full load and then sleep, unless the user has chosen
    otherwise. By default they wait for milliseconds, and where other programs use the CPU too, the one that computes
    waits for those that wait: beside three programs on two cores, calibration of a ResNet-18 took 24 s in place of 15.
    Sleeping at once (``OMP_WAIT_POLICY=PASSIVE``) would make training on an idle machine a tenth slower.

    What was asked for at exit is done and both streams are flushed, but the libraries are not taken apart: the system
    takes back their memory at once, while PyTorch and OpenVINO need most of a second for it after a build.
    """
    if not _WAITING & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"  # read when PyTorch is imported
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

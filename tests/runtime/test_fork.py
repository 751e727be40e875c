"""A forked process has none of OpenVINO's threads: it gets an error where it would wait for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.backends.engines import make_engine

PROGRAM = """
import os, signal, sys, warnings

import numpy as np

import rescompile

warnings.simplefilter("ignore")  # Python's own about forks
folder, alone = sys.argv[1], rescompile.RunOptions(threads=1)
engine, single = rescompile.load(folder), rescompile.load(folder, options=alone)
images = np.zeros((1, *engine.manifest.inputs[0].shape[1:]), np.float32)
expected = single(images)
ways = {
    "call": lambda: engine(images),
    "load": lambda: rescompile.load(folder, options=alone),
    "submit": lambda: single.submit(images).result(),
    "one thread": lambda: (single(images) == expected).all(),
}
for name, way in ways.items():
    if os.fork() == 0:
        signal.alarm(20)
        try:
            print(name, way(), flush=True)
        except rescompile.RescompileError as error:
            print(name, error, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, name
print("parent", (engine(images) == expected).all())
"""


def test_a_forked_process_gets_an_error_instead_of_waiting(tmp_path: Path) -> None:
    make_engine(tmp_path / "e")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "e")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = dict(line.split(" ", 1) for line in done.stdout.replace("one thread", "one-thread").splitlines())
    assert done.returncode == 0, done.stderr
    assert said["call"].startswith("this process was forked from one that had used OpenVINO")
    assert said["load"] == said["call"]
    assert said["submit"].startswith("this engine was loaded before the process was forked")
    assert said["one-thread"] == said["parent"] == "True"

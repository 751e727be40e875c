"""A table made on one machine gives the same scales, bit for bit, and the same graph on another.

One machine can show only a part of that: the committed table was made elsewhere and earlier, and the process here
differs in what one machine can vary: the order of hashes, the encoding, the time zone and the number of threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from calibration.table import read_table
from tests import portable

ROOT = Path(__file__).parents[2]
EXPECTED = json.loads(portable.FACTS.read_text("utf-8"))


def test_scales_and_graph_of_the_committed_table_are_what_they_were() -> None:
    found = portable.facts()
    assert found.keys() == EXPECTED.keys()
    for key, value in EXPECTED.items():
        assert found[key] == value, key


def test_scales_of_the_committed_table_have_these_bits() -> None:
    assert portable.bits(read_table(portable.TABLE)) == {
        "input": "3ca68000",
        "relu1": "3d83a000",
        "layer1.0.relu1": "3d98c000",
        "layer1.0.relu": "3da48000",
        "layer2.0.relu1": "3db14000",
        "layer2.0.relu": "3d9f4000",
        "layer3.0.relu1": "3deae000",
        "layer3.0.relu": "3e03a000",
        "flatten": "3d8d4000",
    }


def test_settings_of_the_process_change_nothing() -> None:
    settings = {
        "PYTHONHASHSEED": "4294967295", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "TZ": "Asia/Kathmandu", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.portable"],
        cwd=ROOT, env={**os.environ, **settings}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert json.loads(done.stdout) == EXPECTED


def test_calibrating_again_in_one_process_gives_the_same_table() -> None:
    first = portable.calibrated()
    assert first == portable.calibrated()
    assert first.images == read_table(portable.TABLE).images

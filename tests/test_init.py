"""The public face: complete, sorted, and light to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rescompile


def test_public_names_are_sorted_and_all_there() -> None:
    assert rescompile.__all__ == sorted(rescompile.__all__)
    assert set(rescompile.__all__) <= set(dir(rescompile))
    for name in rescompile.__all__:
        assert getattr(rescompile, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        _ = rescompile.biuld


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, rescompile; print([n for n in ('numpy', 'torch', 'onnx', 'msgspec') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"


def test_importing_is_quick() -> None:
    code = "import time; start = time.process_time(); import rescompile; print(time.process_time() - start)"
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, capture_output=True, text=True, timeout=120, check=True) for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 0.15

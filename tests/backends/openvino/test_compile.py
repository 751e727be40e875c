"""Everything that OpenVINO executes is compiled by one function, which tells it to infer in f32."""

from __future__ import annotations

import re
from pathlib import Path

import openvino as ov
import pytest

import rescompile
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.compile import compile_model, settings_of
from tests.backends.engines import build

ROOT = Path(rescompile.__file__).parents[1]
COMPILES = re.compile(r"\b(?:ov|core|[cC]ore\(\))\.compile_model\(")
ALLOWED = {
    "rescompile/backends/openvino/compile.py",
    # a user's own loop, and servers, which have their own settings
    "benchmarks/end_to_end.py",
    "rescompile/serving/bfloat16_check.py",
    "tests/serving/test_export.py",
    "tests/serving/triton_backend.py",
    "tests/test_how_to.py",
}


def test_the_other_files_do_not_compile_by_themselves() -> None:
    folders = ("rescompile", "calibration", "benchmarks", "examples", "tests")
    found = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if COMPILES.search(path.read_text("utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_layer_is_rounded_to_bfloat16(precision: str, tuned: bool, tmp_path: Path) -> None:
    build(tmp_path, precision)  # type: ignore[arg-type]
    compiled = compile_model(tmp_path / "model.xml", RunOptions(threads=1), tuned=tuned)
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    types = {
        str(node.get_rt_info()[key].value)
        for node in compiled.get_runtime_model().get_ops()
        for key in ("runtimePrecision", "outputPrecisions")
    }
    assert "f32" in types
    assert not any("bf16" in each for each in types)


def test_the_runtime_for_cpp_sets_the_same() -> None:
    source = (ROOT / "cpp/src/openvino_models.cpp").read_text("utf-8")
    for name, value in settings_of(RunOptions()).items():
        assert f'"{name}"' in source
        assert f'"{value}"' in source

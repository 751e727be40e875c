"""The form of INT8 graphs that a CPU computes exactly, and that it computes the same integers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from rescompile.backends.cpu import forms
from rescompile.backends.cpu.lowering import lower
from rescompile.backends.onnxruntime import reference_session
from rescompile.manifest import CpuForm
from rescompile.metrics import relative_rms
from tests.backends.cpu.test_lowering import constants, one_conv
from tests.graph.conftest import images as images_of
from tests.graph.conftest import int8

DETECTION = "rescompile.backends.cpu.forms"
PRINT_FORM = "from rescompile.backends.cpu.forms import machine_form; print(machine_form())"


def run(model: onnx.ModelProto, images: NDArray[Any]) -> NDArray[Any]:
    return reference_session(model.SerializeToString(), optimize=False)(images)


def test_flags_are_those_of_linux(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu avx2 avx512_vnni\nvmx flags : vnmi\n")
    assert forms.flags_of(path) == {"fpu", "avx2", "avx512_vnni"}
    assert forms.flags_of(tmp_path / "missing") == set()


@pytest.mark.parametrize(
    ("flags", "exact", "form"),
    [
        ({"avx2"}, True, "avx2"),
        ({"avx2", "avx_vnni"}, True, "avx2"),
        ({"avx512_vnni"}, False, "avx2"),
        ({"avx512_vnni"}, True, "vnni"),
        ({"avx512_vnni", "amx_int8"}, True, "amx"),
        ({"avx512_vnni", "amx_int8"}, False, "avx2"),
    ],
)
def test_the_form_needs_both_the_instructions_and_exact_sums(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], exact: bool, form: CpuForm
) -> None:
    monkeypatch.setattr(f"{DETECTION}.flags_of", lambda _: flags)
    monkeypatch.setattr(f"{DETECTION}._adds_in_32_bits", lambda: exact)
    assert forms.detected() == form


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE"])
def test_a_cpu_that_may_not_use_its_vnni_has_the_form_of_one_without(limit: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_FORM], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": limit},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("avx2\n", "")


@pytest.mark.parametrize("form", ["vnni", "amx"])
@pytest.mark.parametrize("case", ["signed", "full range", "half range"])
def test_integers_are_those_of_the_graph_without_more_channels(case: str, form: CpuForm) -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8)
    full = case == "full range"
    model = one_conv(weight, relu=case != "signed", zero_point=-128 if full else 0)
    lowered = lower(model, form)
    images = random.uniform(-160, 300, (2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(lowered, images), run(model, images))
    kinds = {node.op_type for node in lowered.graph.node}
    assert "Concat" not in kinds
    assert ("Clip" in kinds) == (case == "half range")
    assert constants(lowered)["w"].shape == weight.shape


def test_a_network_answers_as_before() -> None:
    model, images = int8("resnet18"), images_of("resnet18")
    lowered = lower(model, "vnni")
    onnx.checker.check_model(lowered, full_check=True)
    assert relative_rms(run(model, images), run(lowered, images)) < 1e-3

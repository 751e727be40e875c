"""The machine is described without importing anything heavy, and the doctor says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rescompile import environment
from rescompile.backends import BACKENDS
from rescompile.backends.cuda.devices import Gpu
from rescompile.environment import Finding, cpu_features, describe, diagnose
from rescompile.version import VERSION


def findings() -> dict[str, Finding]:
    return {finding.subject: finding for finding in diagnose()}


def test_the_description_is_text_by_name() -> None:
    found = describe()
    assert found["rescompile"] == VERSION
    assert int(found["cores"]) >= 1
    assert {"python", "platform", "cpu", "isa", "memory", "gpu", "numpy", "openvino"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_packages_that_are_missing_have_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "package-of-nowhere"))
    assert "package-of-nowhere" not in describe()


def test_gpus_are_named_with_their_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("NVIDIA L4", "sm_89", "13.0"),))
    assert describe()["gpu"] == "NVIDIA L4 (sm_89, CUDA 13.0)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: sse avx2 avx512_vnni amx_int8\n", ("avx2", "avx512_vnni", "amx_int8")),
        ("Features\t: fp asimd asimddp i8mm\n", ("neon", "dotprod", "i8mm")),
        ("flags : avx2x\n", ()),
        ("", ()),
    ],
)
def test_instruction_sets_are_read_on_x86_and_arm(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, *given: text)
    assert cpu_features() == expected


def test_a_system_without_proc_is_described_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path, *given: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_features() == ()
    assert environment._cpu_model() != ""


def test_describing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rescompile.environment import describe; describe();"
        "print([n for n in ('torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt_rtx') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_the_doctor_speaks_of_every_backend_and_of_auto() -> None:
    found = findings()
    assert set(BACKENDS) <= set(found)
    assert found["openvino"].status == "ok"
    assert "build and run" in found["openvino"].text
    assert found["--backend auto"].text.startswith("takes ")


def only_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "installed", lambda module: module == "openvino")


def test_a_missing_extra_comes_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_base(monkeypatch)
    found = findings()
    assert found["building"].status == "limited"
    assert "torch" in found["building"].text
    assert found["building"].advice.endswith("[build]'")
    assert found["triton"].advice.endswith("[triton]'")
    assert (found["openvino"].status, "can run here" in found["openvino"].text) == ("limited", True)


def test_nothing_is_said_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        advice = [finding.advice for finding in diagnose() if finding.advice]
        subjects = [finding.subject for finding in diagnose()]
        assert len(set(subjects)) == len(subjects)
        assert not any("pip install" in finding.text for finding in diagnose())
        assert len(set(advice)) >= len(advice) - 1  # ONNX Runtime comes with the extra build
        only_the_base(monkeypatch)


def test_tensorrt_is_not_advised_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    only_the_base(monkeypatch)
    monkeypatch.setattr(environment, "gpus", lambda: ())
    assert findings()["tensorrt"].advice == ""
    assert "pycuda" not in findings()
    monkeypatch.setattr(environment, "gpus", lambda: (Gpu("NVIDIA L4", "sm_89", "13.0"),))
    assert findings()["tensorrt"].advice.endswith("[tensorrt]'")
    assert "ctypes" in findings()["pycuda"].text
    monkeypatch.setattr(environment, "installed", lambda module: True)
    assert findings()["pycuda"].text.endswith("moves images to the GPU")


@pytest.mark.parametrize(("features", "status"), [(("avx2",), "limited"), (("avx2", "avx512_vnni"), "ok")])
def test_a_cpu_without_integer_dot_products_is_called_slower(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], status: str
) -> None:
    monkeypatch.setattr(environment, "cpu_features", lambda: features)
    assert findings()["machine"].status == status


def test_little_disk_and_no_permission_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    found = findings()["working directory"]
    assert (found.status, "make room" in found.advice) == ("limited", True)
    monkeypatch.setattr(os, "access", lambda *given: False)
    found = findings()["working directory"]
    assert found.status == "missing"
    assert "not writable" in found.text


def test_a_cache_that_does_not_exist_yet_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "not" / "yet"))
    assert str(tmp_path / "not" / "yet") in findings()["cache"].text


def test_findings_are_plain_data() -> None:
    decoded = json.loads(msgspec.json.encode(diagnose()))
    assert {"subject", "status", "text", "advice"} == set(decoded[0])

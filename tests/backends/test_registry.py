"""Backends are found by name, and ``auto`` says why it chose."""

from __future__ import annotations

import pytest

from rescompile import backends
from rescompile.backends import BACKENDS, choose_backend, get_backend
from rescompile.backends.base import Availability, RestType
from rescompile.backends.cuda.devices import Gpu
from rescompile.backends.tensorrt.backend import TensorRt
from rescompile.errors import UsageError
from rescompile.manifest import Precision

GPU = Gpu("NVIDIA L4", "sm_89", "13.0")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_is_made_under_its_own_name(name: str) -> None:
    assert get_backend(name).name == name


def test_an_unknown_backend_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"--backend openvin is unknown.*Did you mean 'openvino'") as caught:
        get_backend("openvin")
    assert caught.value.exit_code == 2


def test_auto_takes_openvino_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "gpus", tuple)
    assert choose_backend() == ("openvino", "the CPU engine, because this machine has no CUDA GPU")


@pytest.mark.parametrize("run", [True, False])
def test_auto_takes_tensorrt_where_it_builds_and_runs(monkeypatch: pytest.MonkeyPatch, run: bool) -> None:
    def availability(self: TensorRt, target: str | None = None) -> Availability:
        return Availability(build=True, run=run, reason="pycuda tells")

    monkeypatch.setattr(backends, "gpus", lambda: (GPU,))
    monkeypatch.setattr(TensorRt, "availability", availability)
    name, reason = choose_backend()
    assert name == ("tensorrt" if run else "openvino")
    assert "pycuda tells" in reason


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_cpu_backend_refuses_a_target(name: str) -> None:
    with pytest.raises(UsageError, match=f"--target sm_89 does not go with --backend {name}"):
        get_backend(name).check("sm_89")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("precision", "rest"), [("fp32", "float32"), ("fp16", "float16"), ("int8", "float32")]
)
def test_on_the_cpu_only_fp16_is_typed_fp16(name: str, precision: Precision, rest: RestType) -> None:
    assert get_backend(name).rest_type(precision) == rest

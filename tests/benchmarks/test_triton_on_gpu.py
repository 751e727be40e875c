"""The ctypes driver packs and calls what the runner asks (a driver on the host, on real addresses)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import triton_on_gpu
from benchmarks.gpu import driver
from benchmarks.gpu.driver import Driver, Error
from rescompile.backends.triton.runner import PlanRunner
from rescompile.errors import BackendError
from rescompile.manifest import Batch
from tests.backends.triton.networks import CLASSES, images
from tests.backends.triton.planned import SCRATCH, make_plan

pytest.importorskip("triton", reason="plans are made by the extra triton")


class Host:
    """libcuda with its memory in this process; kernels do not compute, but what they are passed is kept."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.launches: list[tuple[bytes, tuple[int, ...]]] = []
        self.graph_launches = self.depth = 0
        self.status: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self.status.get(name, 0)  # those that only succeed

    def cuGetErrorString(self, status: int, words: Any) -> int:  # noqa: N802 - the library's own names
        words._obj.value = b"out of memory"
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.depth += 1
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.depth -= 1
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        stream._obj.value = 7
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:  # noqa: N802
        if status := self.status.get("cuMemAlloc_v2"):
            return status
        buffer = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(buffer)
        self.memory[address._obj.value] = buffer
        return 0

    def cuMemFree_v2(self, address: Any) -> int:  # noqa: N802
        del self.memory[address.value]
        return 0

    def cuMemAllocHost_v2(self, address: Any, size: Any) -> int:  # noqa: N802
        return self.cuMemAlloc_v2(address, size)

    def cuMemFreeHost(self, address: Any) -> int:  # noqa: N802
        return self.cuMemFree_v2(address)

    def cuMemsetD8_v2(self, address: Any, value: Any, size: Any) -> int:  # noqa: N802
        ctypes.memset(address.value, value.value, size.value)
        return 0

    def cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> int:  # noqa: N802
        ctypes.memmove(address.value, source.value, size.value)
        return 0

    def cuMemcpyHtoDAsync_v2(self, address: Any, source: Any, size: Any, stream: Any) -> int:  # noqa: N802
        assert stream.value == 7
        return self.cuMemcpyHtoD_v2(address, source, size)

    def cuMemcpyDtoHAsync_v2(self, target: Any, address: Any, size: Any, stream: Any) -> int:  # noqa: N802
        ctypes.memmove(target.value, address.value, size.value)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:  # noqa: N802
        function._obj.value = 1 + len(name)
        return 0

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:  # noqa: N802
        *shape, stream, parameters, extra = rest
        assert (stream.value, parameters) == (7, None)
        assert (extra[0], extra[2], extra[4]) == (1, 2, None)
        size = ctypes.cast(extra[3], ctypes.POINTER(ctypes.c_size_t)).contents.value
        self.launches.append((ctypes.string_at(extra[1], size), tuple(shape)))
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        graph._obj.value = 50
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        executable._obj.value = 60
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:  # noqa: N802
        self.graph_launches += 1
        return 0


class Parameters(ctypes.Structure):
    """Those of the kernel that takes the image, in C's own layout."""

    _fields_ = [
        ("image", ctypes.c_uint64),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_uint64),
        ("m", ctypes.c_int32),
    ]


def test_arguments_lie_where_a_kernel_reads_them(tmp_path: Path) -> None:
    plan, host = make_plan(tmp_path, "cifar", "int8", batch=Batch(1, 1, 1)), Host()
    runner = PlanRunner(Driver(host), host, tmp_path, plan)
    logits = runner(images("cifar", 1))
    first = plan.programs[0].launches[0]
    kernel = plan.kernels[first.kernel]
    packed, shape = host.launches[0]
    assert shape == (*first.grid, kernel.threads, 1, 1, kernel.shared_bytes)
    read = Parameters.from_buffer_copy(packed[: ctypes.sizeof(Parameters)])
    assert kernel.parameters[:4] == ("*fp32", "fp32", "*i8", "i32")
    assert read.scale == np.float32(first.arguments[1])
    assert read.image in host.memory
    assert any(base <= read.out < base + len(buffer) for base, buffer in host.memory.items())
    assert read.m == first.arguments[3]
    assert packed[-8 * SCRATCH :] == bytes(8 * SCRATCH)
    assert (logits.shape, host.depth, host.graph_launches) == ((1, CLASSES), 0, 1)
    runner.close()
    assert host.memory == {}


def test_an_error_of_the_driver_has_its_words(tmp_path: Path) -> None:
    plan, host = make_plan(tmp_path, "cifar", "int8"), Host()
    host.status["cuMemAlloc_v2"] = 2
    with pytest.raises(BackendError, match=r"cuMemAlloc_v2 failed: out of memory \(2\)"):
        PlanRunner(Driver(host), host, tmp_path, plan)
    assert host.depth == 0


def test_without_a_driver_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.cuda, "driver", lambda: None)
    with pytest.raises(Error, match="no CUDA driver"):
        Driver()


@pytest.mark.parametrize(
    ("error", "right"), [(0.0, True), (1e-6, False), (float("nan"), False)], ids=["equal", "off", "NaN"]
)
def test_int8_must_be_equal_to_the_bit(
    error: float, right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, "cifar", "int8", batch=Batch(1, 1, 2))

    def reference(batch: Any) -> Any:
        return np.ones((len(batch), CLASSES), np.float32)

    def runner(batch: Any) -> Any:
        return reference(batch) + np.float32(error)

    assert triton_on_gpu.check(runner, reference, plan, images("cifar", 4)) is right
    assert capsys.readouterr().out.count("right" if right else "WRONG") == 2


def test_a_latency_is_the_median_of_calls() -> None:
    assert 0 <= triton_on_gpu.latency(lambda batch: None, np.zeros(1), 0.0) < 0.01

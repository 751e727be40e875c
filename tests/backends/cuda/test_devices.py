"""GPUs are asked of the driver, and a machine without one has none."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from rescompile.backends.cuda import devices


class FakeDriver:
    """libcuda with two GPUs, writing through the pointers that it is given."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = f"GPU {device.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 12, 76: 0}[attribute] if device.value else {75: 8, 76: 9}[attribute]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13020
        return 0


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    devices.gpus.cache_clear()
    yield
    devices.gpus.cache_clear()


def test_every_gpu_is_told_with_its_target_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "load_library", FakeDriver)
    first, second = devices.gpus()
    assert first == ("GPU 0", "sm_89", "13.2")
    assert second.capability == "sm_120"


def test_a_driver_that_does_not_start_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "load_library", lambda: FakeDriver(status=100))
    assert devices.gpus() == ()


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert devices.gpus() == ()

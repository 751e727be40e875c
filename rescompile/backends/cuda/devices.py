"""CUDA GPUs of this machine, asked of the driver itself: no CUDA toolkit, no torch."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, NamedTuple

from rescompile.errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


class Gpu(NamedTuple):
    """One GPU; ``capability`` is written as targets are, ``sm_89``."""

    name: str
    capability: str
    memory_bytes: int
    driver: str
    """The newest CUDA version that the driver knows, ``13.0``."""


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """Every GPU that the driver shows to this process; empty where there is no driver or no GPU."""
    library = driver()
    if library is None or library.cuInit(0) != 0:
        return ()
    count = ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(library, index) for index in range(count.value))


def driver() -> ctypes.CDLL | None:
    """The CUDA driver's library, or None where there is none."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def call(library: Any, name: str, *arguments: Any) -> None:
    """Call the function ``name`` of the driver's ``library``.

    Raises:
        BackendError: the driver refuses; its number is in the message.
    """
    error = getattr(library, name)(*arguments)
    if error != 0:
        raise BackendError(f"the CUDA driver refuses {name} (error {error})")


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, name, version = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    memory, major, minor = ctypes.c_size_t(), ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    library.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"sm_{major.value}{minor.value}",
        memory_bytes=memory.value,
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )

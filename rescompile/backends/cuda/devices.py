"""CUDA GPUs of this machine, as the driver lists them: needs neither the CUDA toolkit nor torch."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

from rescompile.backends.cuda.driver import load_library
from rescompile.errors import BackendUnavailable

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


class Gpu(NamedTuple):
    """One GPU; ``capability`` is written as targets are, ``sm_89``."""

    name: str
    capability: str
    driver: str
    """The newest CUDA version that the driver knows, ``13.0``."""


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """All GPUs that the driver shows to this process; empty where there is no driver or no GPU."""
    library = load_library()
    if library is None or library.cuInit(0) != 0:
        return ()
    count = ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(library, index) for index in range(count.value))


def require_gpu(purpose: str, remedy: str) -> Gpu:
    """The first GPU.

    Raises:
        BackendUnavailable: there is none; the message says what for, and what to do instead.
    """
    if not gpus():
        raise BackendUnavailable(f"{purpose} needs a CUDA GPU, and there is none here{remedy}")
    return gpus()[0]


def target_obstacle(gpu: Gpu, target: str | None) -> str | None:
    """Why an engine for ``target`` does not run on ``gpu``; None where nothing is known against it."""
    if target in (None, gpu.capability):
        return None
    return f"it is for {target}, and {gpu.name} is {gpu.capability}; build it for this GPU"


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, name, version = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    library.cuDriverGetVersion(ctypes.byref(version))
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"sm_{major.value}{minor.value}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )

"""The machine and its abilities: ``describe`` for manifests and reports, ``diagnose`` for ``doctor``.

Nothing heavy is imported: versions come from package metadata, GPUs from the driver.
"""

from __future__ import annotations

import os
import platform
import shutil
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from calibration.cores import available_cores
from rescompile.backends import BACKENDS, choose_backend, get_backend
from rescompile.backends.cuda.devices import gpus
from rescompile.cache import cache_directory
from rescompile.optional import BUILD, how_to_install, installed
from rescompile.version import VERSION
from rescompile.wording import listing, size

PACKAGES = (
    "numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "openvino", "torch", "pillow", "safetensors", "msgspec",
    "tensorrt", "tensorrt-rtx", "pycuda", "triton",
)  # fmt: skip

_X86 = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ISA = {**{name: name for name in _X86}, "asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm"}
"""Flag in /proc/cpuinfo to the usual name, for instruction sets that affect the speed of an engine."""

_PURPOSE = {
    "onnxruntime": ("onnxruntime", "the reference that builds are checked with"),
    "openvino": ("openvino", "engines for CPUs"),
    "tensorrt": ("tensorrt", "engines for this machine's NVIDIA GPU, the fastest"),
    "tensorrt-rtx": ("tensorrt_rtx", "engines for GeForce and RTX GPUs, built without a GPU"),
    "triton": ("triton", "engines for data centre GPUs, built without one, and the fused kernels"),
}
"""Backend to the package that it needs, and its purpose."""

_LOW_DISK = 2 * 10**9


class Finding(msgspec.Struct, frozen=True):
    """One line of ``rescompile doctor``; ``advice`` says what the user can do, and may be empty."""

    subject: str
    status: Literal["ok", "limited", "missing"]
    text: str
    advice: str = ""


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe() -> dict[str, str]:
    """This machine and its software, as text by name; missing packages have no entry, a missing GPU is ``none``."""
    features = cpu_features()
    packages = {name: version for name in PACKAGES if (version := _version(name)) is not None}
    return {
        "rescompile": VERSION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": str(available_cores()),
        "isa": " ".join(features) or "none of interest",
        "memory": size(_memory_bytes()),
        "gpu": "; ".join(f"{gpu.name} ({gpu.capability}, CUDA {gpu.driver})" for gpu in gpus()) or "none",
        **packages,
    }


def diagnose() -> list[Finding]:
    """Findings about each backend and its extra, once each, and about free disk space."""
    name, reason = choose_backend()
    return [
        _machine(),
        _building(),
        *(_backend(backend) for backend in BACKENDS),
        Finding("--backend auto", "ok", f"takes {name}: {reason}"),
        *([_pycuda()] if gpus() else []),
        _room("working directory", Path.cwd()),
        _room("cache", cache_directory()),
    ]


def cpu_features() -> tuple[str, ...]:
    """The instruction sets of this CPU that affect an engine's speed; empty where the system does not list them."""
    flags = {flag for key in ("flags", "Features") for flag in _cpuinfo(key).split()}
    return tuple(name for flag, name in _ISA.items() if flag in flags)


def _machine() -> Finding:
    found = describe()
    text = f"{found['cpu']}, {found['cores']} cores, {found['memory']}, {found['isa']}; GPU: {found['gpu']}"
    fast = {"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"}
    if fast & set(cpu_features()):
        return Finding("machine", "ok", text)
    return Finding("machine", "limited", text, "INT8 is slower here than on a CPU with VNNI or AMX")


def _building() -> Finding:
    absent = [module for module in BUILD if not installed(module)]
    if not absent:
        return Finding("building", "ok", "networks can be read, calibrated and built into engines")
    text = f"engines run, are judged and measured here; building them needs {listing(absent, len(absent))}"
    return Finding("building", "limited", text, how_to_install(absent[0]))


def _backend(name: str) -> Finding:
    package, purpose = _PURPOSE[name]
    found, version = get_backend(name).availability(), _version(package.replace("_", "-"))
    building = found.build and all(map(installed, BUILD))
    verbs = [verb for verb, can in (("build", building), ("run", found.run)) if can]
    status: Literal["ok", "limited", "missing"] = "ok" if building and found.run else "limited"
    if not verbs:
        status = "missing"
    if installed(package):
        can = f"can {' and '.join(verbs) or 'neither build nor run'} here: {found.reason}"
        return Finding(name, status, f"{purpose}; {version or 'it'} {can}")
    if name == "tensorrt" and not gpus():
        return Finding(name, "missing", f"{purpose}; there is none")
    can = f", and engines can {' and '.join(verbs)} here" if verbs else ""
    return Finding(name, status, f"{purpose}; not installed{can}", how_to_install(package))


def _pycuda() -> Finding:
    if installed("pycuda"):
        return Finding("pycuda", "ok", f"{_version('pycuda') or 'installed'}: moves images to the GPU")
    text = "not installed: engines move their images to the GPU by ctypes, which is as fast"
    return Finding("pycuda", "ok", text)


def _room(what: str, path: Path) -> Finding:
    existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
    free, writable = shutil.disk_usage(existing).free, os.access(existing, os.W_OK)
    text = f"{path}: {size(free)} free" + ("" if writable else ", not writable")
    if not writable:
        return Finding(what, "missing", text, "work in a directory that you may write")
    advice = (
        "" if free >= _LOW_DISK else "an engine of ResNet-152 with its graphs takes up to 1 GB; make room"
    )
    return Finding(what, "limited" if advice else "ok", text, advice)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """The first value of ``key`` in /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0

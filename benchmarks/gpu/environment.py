"""The origin of figures: device, driver, versions, commit, date and clocks."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rescompile.measuring.git_commit import commit_of

ROOT = Path(__file__).parents[2]
_QUERIES = {
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}


def environment(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Everything that a figure depends on and that can be read without changing it."""
    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or commit_of(ROOT),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "numpy": version("numpy"),
        "device": device.type,
        "device_name": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device_name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cudnn_benchmark": True,
        } | clocks()
    return found


def clocks() -> dict[str, str]:
    """Driver, clocks, power limit and temperature as ``nvidia-smi`` gives them; nothing where it is missing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERIES.values())}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return dict(zip(_QUERIES, values, strict=False))


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def slug(name: str) -> str:
    """A device's name as a folder's: lower case, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "device"


def default_output(found: dict[str, Any]) -> Path:
    """``benchmarks/results/<device>/<date>-<commit>.json``."""
    date = str(found["date"])[:16].replace(":", "")
    return (
        ROOT / "benchmarks" / "results" / slug(str(found["device_name"])) / f"{date}-{found['commit']}.json"
    )

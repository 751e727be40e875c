"""Where a run's results are kept: one folder a device, one file a run."""

from __future__ import annotations

import re
from pathlib import Path

from rescompile.measure.origin import Origin


def slug(name: str) -> str:
    """A device's name as a folder's: lower case, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "device"


def result_path(folder: Path, origin: Origin) -> Path:
    """``<folder>/<device>/<date>-<commit>.json``."""
    date = origin.date[:16].replace(":", "")
    cores = origin.machine.get("cores")
    device = f"{origin.device} {cores} cores" if cores else origin.device
    return folder / slug(device) / f"{date}-{origin.commit}.json"

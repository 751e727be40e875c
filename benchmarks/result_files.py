"""Result files of benchmarks: one folder for each device, one file for each run."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from rescompile.files import atomic_write, writing
from rescompile.measuring.origin import Origin


def slug(name: str) -> str:
    """The folder name of a device: lower case, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "device"


def result_path(folder: Path, origin: Origin) -> Path:
    """``<folder>/<device>/<date>-<commit>.json``."""
    date = origin.date[:16].replace(":", "")
    cores = origin.machine.get("cores")
    device = f"{origin.device} {cores} cores" if cores else origin.device
    return folder / slug(device) / f"{date}-{origin.commit}.json"


def write_result(document: msgspec.Struct, path: Path) -> None:
    """Write ``document`` as indented JSON, whole or not at all; folders that are missing are made.

    Raises:
        OutputError: ``path`` may not be written, or the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")

"""Result files of benchmarks: one folder for each device, one file for each run; what their pages say of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rescompile.files import atomic_write, writing
from rescompile.measuring.origin import Origin
from rescompile.wording import counted

_INT8_UNITS = {"amx": "AMX", "vnni": "VNNI"}
"""What multiplies int8, by the instruction set that has it; the best one first."""


def slug(name: str) -> str:
    """The folder name of a device: lower case, hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "device"


def device_name(origin: Origin) -> str:
    """The device with what multiplies int8 on it, which one name of a processor may have or not."""
    isa = origin.machine.get("isa", "").split()
    found = next((name for key, name in _INT8_UNITS.items() if any(key in word for word in isa)), None)
    return f"{origin.device} with {found}" if found else origin.device


def result_path(folder: Path, origin: Origin) -> Path:
    """``<folder>/<device>/<date>-<commit>.json``."""
    date = origin.date[:16].replace(":", "")
    cores = origin.machine.get("cores")
    device = f"{device_name(origin)} {cores} cores" if cores else origin.device
    return folder / slug(device) / f"{date}-{origin.commit}.json"


def write_result(document: msgspec.Struct, path: Path) -> None:
    """Write ``document`` as indented JSON, whole or not at all; folders that are missing are made.

    Raises:
        OutputError: ``path`` may not be written, or the disk is full.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a benchmark that has a page of its own."""

    command: str
    origin: Origin

    def write(self, path: Path) -> None:
        """Write the document whole or not at all."""
        write_result(self, path)

    def measured_on(self, versions: Mapping[str, str] | None = None) -> str:
        """Date, commit, device, versions of other tools, and the command; without a full stop."""
        made = self.origin
        tools = ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
        return (
            f"Measured on {made.date[:10]} at commit `{made.commit}` on {made.device}, "
            f"{counted(made.threads, 'thread')}{tools and f', with {tools}'}: `{self.command}`"
        )


def raw_results(path: Path, page: Path) -> str:
    """A link from ``page`` to the document at ``path``."""
    return f"[raw results]({os.path.relpath(path.absolute(), page.parent)})"

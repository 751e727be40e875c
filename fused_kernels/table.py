"""Tuning tables: the best tile of each problem on one kind of GPU, or ``reference`` where plain PyTorch was faster.

A table is JSON: ``{"device": …, "triton": …, "entries": {problem key: tile or "reference"}}``. ``python -m
fused_kernels.tune`` writes it, named after the GPU, and lists only tiles whose results it has checked. Launches read
it from the folder that the environment variable ``FUSED_KERNELS_TABLES`` names, and from those that come with this
package: an entry of the user's own table decides.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import torch

from fused_kernels.errors import TuningError
from fused_kernels.tiles import Tile

REFERENCE: Final = "reference"
Chosen = Tile | Literal["reference"]
Entries = dict[str, Chosen]
FOLDER_VARIABLE = "FUSED_KERNELS_TABLES"
SHIPPED = Path(__file__).parent / "tables"
"""Tables that were measured before a release, by GPU; there is none where nobody has measured yet."""


def table_name(device_name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3.json``."""
    return "-".join(device_name.lower().split()) + ".json"


def read_table(path: Path) -> Entries:
    """The entries of one table.

    Raises:
        TuningError: the file is not a tuning table; the message names the file and what is wrong with it.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        entries: dict[str, Any] = data["entries"]
        return {
            key: REFERENCE if value == REFERENCE else Tile.from_json(value) for key, value in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuningError(
            f"{path} is not a tuning table ({error}): make it again with python -m fused_kernels.tune"
        ) from None


def write_table(path: Path, device_name: str, entries: Entries) -> None:
    """Write a table under a temporary name, then rename it; makes its folder if needed."""
    import triton

    body = {key: value if value == REFERENCE else value.to_json() for key, value in sorted(entries.items())}
    text = json.dumps({"device": device_name, "triton": triton.__version__, "entries": body}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", "utf-8")
    partial.replace(path)


def add_entry(path: Path, device_name: str, key: str, chosen: Chosen) -> None:
    """Set one entry of a table, which is made if it is missing; launches see it from now on."""
    entries = read_table(path) if path.is_file() else {}
    write_table(path, device_name, entries | {key: chosen})
    current_table.cache_clear()


@cache
def current_table(device: torch.device) -> Entries:
    """The entries for ``device``, the user's and the shipped ones; none where there is no table."""
    return entries_for(torch.cuda.get_device_name(device))


def entries_for(device_name: str) -> Entries:
    """The entries for a device by name; see ``current_table``."""
    own = os.environ.get(FOLDER_VARIABLE)
    entries: Entries = {}
    for folder in (SHIPPED, *([Path(own)] if own else [])):
        if (path := folder / table_name(device_name)).is_file():
            entries |= read_table(path)
    return entries

"""Tuning tables: for one kind of GPU, the best tile of each problem, or ``cudnn`` where that was faster.

A table is JSON, data and not code: ``{"device": …, "triton": …, "entries": {problem key: tile or "cudnn"}}``. Tables
lie in ``fused_kernels/tables/`` and, newer ones first, in the folder that ``FUSED_KERNELS_TABLES`` names. The tuner
(``python -m fused_kernels.tune``) writes them; a tile enters one only after its result was checked.
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

CUDNN: Final = "cudnn"
Entries = dict[str, Tile | Literal["cudnn"]]
SHIPPED = Path(__file__).parent / "tables"
FOLDER_VARIABLE = "FUSED_KERNELS_TABLES"


def table_name(device_name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3.json``."""
    return "-".join(device_name.lower().split()) + ".json"


def read_table(path: Path) -> Entries:
    """The entries of one table.

    Raises:
        TuningError: the file is no table; the message names the entry.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        entries: dict[str, Any] = data["entries"]
        return {key: CUDNN if value == CUDNN else Tile.from_json(value) for key, value in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuningError(
            f"{path} is no tuning table ({error}): make it again with python -m fused_kernels.tune"
        ) from None


def write_table(path: Path, device_name: str, entries: Entries) -> None:
    """Write a table under a temporary name, then rename it; its folder is made if need be."""
    import triton

    body = {key: value if value == CUDNN else value.to_json() for key, value in sorted(entries.items())}
    text = json.dumps({"device": device_name, "triton": triton.__version__, "entries": body}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n", "utf-8")
    partial.replace(path)


@cache
def current_table(device: torch.device) -> Entries:
    """All entries known for ``device``; those of the user's own folder win."""
    return entries_for(torch.cuda.get_device_name(device))


def entries_for(device_name: str) -> Entries:
    """All entries for a device by name; see ``current_table``."""
    folders = [SHIPPED]
    if own := os.environ.get(FOLDER_VARIABLE):
        folders.append(Path(own))
    entries: Entries = {}
    for folder in folders:
        if (path := folder / table_name(device_name)).is_file():
            entries |= read_table(path)
    return entries

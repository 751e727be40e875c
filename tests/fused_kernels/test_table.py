"""Tuning tables: written, read, found by the GPU's name, refused where they are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fused_kernels import table
from fused_kernels.errors import TuningError
from fused_kernels.table import (
    FOLDER_VARIABLE,
    REFERENCE,
    entries_for,
    read_table,
    table_name,
    write_table,
)
from fused_kernels.tiles import Tile

H100 = "NVIDIA H100 80GB HBM3"
ENTRIES = {"fprop a": Tile(128, 64, 64, warps=8, stages=4, flat=True), "wgrad b": REFERENCE}


def test_a_table_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a folder that is not there yet" / table_name(H100)
    write_table(path, H100, ENTRIES)
    assert path.name == "nvidia-h100-80gb-hbm3.json"
    assert read_table(path) == ENTRIES
    assert not list(tmp_path.rglob("*.partial"))


def test_a_table_says_for_what_it_was_made(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    write_table(tmp_path / "t.json", H100, ENTRIES)
    data = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert data["device"] == H100
    assert data["triton"] == triton.__version__
    assert list(data["entries"]) == ["fprop a", "wgrad b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"entries": 3}',
        '{"entries": {"a": 3}}',
        '{"entries": {"a": {"m": 64}}}',
        '{"entries": {"a": "cuda"}}',
    ],
)
def test_what_is_no_table_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, "utf-8")
    with pytest.raises(
        TuningError, match=r"broken\.json is not a tuning table .*: make it again with python -m"
    ):
        read_table(path)


def test_the_table_in_the_users_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / table_name(H100), H100, ENTRIES)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert entries_for(H100) == {}
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert entries_for(H100) == ENTRIES
    assert entries_for("NVIDIA L40S") == {}


def test_an_entry_of_the_user_decides_over_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    monkeypatch.setattr(table, "SHIPPED", shipped)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert entries_for(H100) == {}
    write_table(shipped / table_name(H100), H100, ENTRIES)
    assert entries_for(H100) == ENTRIES
    assert entries_for("NVIDIA L40S") == {}
    write_table(own / table_name(H100), H100, {"wgrad b": Tile(64, 64, 32)})
    monkeypatch.setenv(FOLDER_VARIABLE, str(own))
    assert entries_for(H100) == ENTRIES | {"wgrad b": Tile(64, 64, 32)}

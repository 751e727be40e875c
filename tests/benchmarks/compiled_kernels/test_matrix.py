"""Reports of several targets and releases, put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compiled_kernels.matrix import as_page, as_text, cells_from, main
from fused_kernels.tiles import Tile

GOOD: dict[str, Any] = {
    "kernel": "conv.conv_kernel",
    "operation": "conv_moments 3x3",
    "dtype": "bfloat16",
    "tile": Tile(128, 64, 64, warps=4, stages=3).to_json(),
    "registers": 168,
    "spills": 0,
    "shared": 99_328,
    "tensor_core": {"HGMMA": 4},
    "async_copies": 24,
    "problems": [],
}


def report(folder: Path, target: str, triton: str, **changes: Any) -> Path:
    """A report of one good kernel, and of another one with ``changes``."""
    path = folder / f"{triton}-{target}.json"
    kernels = [{**GOOD, "target": target}, {**GOOD, "target": target, **changes}]
    path.write_text(json.dumps({"triton": triton, "kernels": kernels}), "utf-8")
    return path


def test_there_is_a_row_for_each_target_and_release_in_their_order(tmp_path: Path) -> None:
    files = [
        report(tmp_path, target, triton)
        for target in ("sm_120", "sm_90")
        for triton in ("3.10.0", "3.9.0+cu12")
    ]
    cells = cells_from(files)
    found = [(cell.target.name, cell.triton) for cell in cells]
    assert found == [
        ("sm_90", "3.9.0+cu12"),
        ("sm_90", "3.10.0"),
        ("sm_120", "3.9.0+cu12"),
        ("sm_120", "3.10.0"),
    ]
    lines = as_text(cells).splitlines()
    assert lines[1].split() == ["sm_90", "H100", "3.9.0+cu12", "2", "0", "0", "0", "168", "97", "227"]
    assert len(lines) == 5


def test_a_wrong_kernel_is_named_and_makes_it_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = report(tmp_path, "sm_90", "3.6.0"), report(tmp_path, "sm_86", "3.6.0", problems=["too large"])
    with pytest.raises(SystemExit) as stop:
        main([str(good), str(bad)])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "sm_86, Triton 3.6.0: conv_moments 3x3 bfloat16 128x64x64 4w 3s: too large" in out
    with pytest.raises(SystemExit) as stop:
        main([str(good)])
    assert stop.value.code == 0


def test_the_page_shows_spills_and_every_kernel_of_hopper(tmp_path: Path) -> None:
    files = [report(tmp_path, "sm_90", "3.6.0"), report(tmp_path, "sm_86", "3.6.0", spills=7)]
    page = as_page(cells_from(files))
    assert "| sm_86 | RTX 3090 | 3.6.0 | 2 | 0 | 1 | 7 | 168 | 97 | 99 |" in page
    assert "| conv | bfloat16 | 128x64x64 4w 3s | 7 |" in page
    row = "| conv | conv_moments 3x3 | bfloat16 | 128x64x64 4w 3s | 168 | 0 | 97.0 | 4 HGMMA | 24 | ok |"
    assert page.count(row) == 2
    assert "## Spills" not in as_page(cells_from(files[:1]))


def test_the_page_can_be_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit):
        main([str(report(tmp_path, "sm_90", "3.6.0")), "--output", str(page)])
    assert page.read_text("utf-8").startswith("# Kernels, compiled\n")

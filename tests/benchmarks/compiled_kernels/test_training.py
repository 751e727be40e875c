"""The page of a training step's products names the worst of each kind, before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compiled_kernels import training
from benchmarks.compiled_kernels.sass import opcodes
from benchmarks.compiled_kernels.training import as_page

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], !UPT ;
        /*0020*/               @P0 SHFL.BFLY PT, R3, R2, 0x1, 0x1f ;
        /*0030*/                   NOP ;
"""


def product(**changes: Any) -> dict[str, Any]:
    shown = {"name": "conv moments", "shape": "1x1 64→256", "tile": "t", "launches": 2, "registers": 170}
    return {
        **shown,
        "programs": 1,
        "spills": 0,
        "shuffles": 331,
        "after": 2330,
        "loop": 358,
        "loop_kinds": {},
        **changes,
    }


def test_a_line_has_the_worst_of_its_kind_before_and_after() -> None:
    before = {
        "triton": "3.6.0",
        "commit": "old",
        "products": [product(), product(shape="1x1 64→64", registers=90)],
    }
    now = [product(registers=128, programs=2), product(shape="3x3 64→64", programs=3)]
    page = " ".join(as_page(before, {"triton": "3.6.0", "commit": "new", "products": now}).split())
    assert (
        "| conv moments 1x1 | 2 | 170 → 128 | 1 → 2 | 0 → 0 | 331 → 331 | 2330 → 2330 | 358 → 358 |" in page
    )
    assert "| conv moments 3x3 | 2 | - → 170 | - → 3 |" in page
    assert "4 of 4 launches had a processor to themselves; 0 of 4 have now" in page
    assert "commit old, then at new" in page


def test_the_loop_of_each_tile_is_told_by_what_its_instructions_do() -> None:
    kinds = {"tensor cores": 4, "moves": 3}
    now = [product(), product(loop=400, loop_kinds=kinds), product(tile="u", loop=0)]
    page = as_page({"commit": "old", "products": []}, {"triton": "3.6.0", "commit": "new", "products": now})
    table = page.split("## Loops")[1]
    assert "| conv moments 1x1 | t | 400 | 4 | 0 | 0 | 0 | 0 | 3 | 0 |" in table
    assert "| u |" not in table


def test_opcodes_are_in_order_without_modifiers() -> None:
    assert opcodes(LISTING) == ["LDC", "HGMMA", "SHFL"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["out.json", "--page", "p.md"], "belong together"),
        (["out.json", "--page", "p.md", "--before", "none.json"], "cannot be read"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_compiled(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "products", lambda jobs: pytest.fail("compiled"))
    with pytest.raises(SystemExit) as stop:
        training.main(words)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_the_file_and_the_page_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = training.Product("conv moments", "1x1 64→256", "t", 2, 128, 2, 0, 67, 900, 300)
    monkeypatch.setattr(training, "products", lambda jobs: [made])
    training.main([str(tmp_path / "before.json")])
    words = [
        str(tmp_path / "now.json"),
        "--before",
        str(tmp_path / "before.json"),
        "--page",
        str(tmp_path / "p.md"),
    ]
    training.main(words)
    assert json.loads((tmp_path / "now.json").read_text())["products"][0]["registers"] == 128
    assert "128 → 128" in (tmp_path / "p.md").read_text("utf-8")

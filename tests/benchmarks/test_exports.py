"""The exports page is made of the stored table, in which every network is right; a change of structure is named."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor, nn

from benchmarks.exports.measure import COMPARED, TARGET, measured
from benchmarks.exports.page import PAGE, TABLE, Row, Table, differences, page

DIFFERS = "its graph differs from the module by"


def stored() -> Table:
    return msgspec.json.decode(TABLE.read_bytes(), type=Table)


def test_the_page_is_that_of_the_stored_table() -> None:
    assert page(stored(), images=COMPARED, target=TARGET) == PAGE.read_text("utf-8")


def test_every_stored_network_is_right() -> None:
    assert [fault for row in stored().rows if (fault := row.fault())] == []


class Residual(nn.Module):
    """A stem, a residual block, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.stem(images).relu()
        features = (self.branch(stem) + stem).relu()
        return self.head(features.mean((2, 3))), features.tanh()


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Row:
    torch.manual_seed(0)
    return measured("tiny", Residual().eval(), (3, 16, 16), tmp_path_factory.mktemp("exports"))


def test_a_module_is_measured_whole(row: Row) -> None:
    assert max(row.error, row.error_exact, row.module_error_exact) < 1e-5
    assert (row.adds, row.adds_fused) == (1, 1)
    assert "layer1.0" in row.blocks
    assert row.floating["Tanh"] == 1
    assert row.tensors >= 3
    assert row.fault() is None or row.tensorrt.startswith("not built")


def test_only_structure_and_placement_are_compared_with_the_stored_row(row: Row) -> None:
    assert list(differences(row, msgspec.structs.replace(row, error=1e-5, tensors=99))) == []
    changed = msgspec.structs.replace(row, adds_fused=0, floating={})
    assert list(differences(row, changed)) == [
        "tiny: adds_fused were 1 and are 0",
        f"tiny: floating were {row.floating} and are {{}}",
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"error": 2e-4, "error_exact": 1e-4, "module_error_exact": 2e-4}, None),
        ({"error": 2e-4, "error_exact": 3e-4, "module_error_exact": 2e-4}, f"{DIFFERS} 0.0002"),
        ({"error": float("nan"), "error_exact": float("nan")}, f"{DIFFERS} nan"),
        ({"tensorrt": "not built: no such layer"}, "not built: no such layer"),
    ],
)  # fmt: skip
def test_a_row_is_right_or_says_why(row: Row, changes: dict[str, object], fault: str | None) -> None:
    assert msgspec.structs.replace(row, **{"tensorrt": "built, 1 of 1 fused", **changes}).fault() == fault

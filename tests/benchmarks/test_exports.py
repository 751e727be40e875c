"""The exports page is made of the stored table, in which every network is right; a change of structure is named."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.exports.measure import COMPARED, TARGET
from benchmarks.exports.page import PAGE, TABLE, Row, Table, differences, page

DIFFERS = "its graph differs from the module by"


def stored() -> Table:
    return msgspec.json.decode(TABLE.read_bytes(), type=Table)


def test_the_page_is_that_of_the_stored_table() -> None:
    assert page(stored(), images=COMPARED, target=TARGET) == PAGE.read_text("utf-8")


def test_every_stored_network_is_right() -> None:
    assert [fault for row in stored().rows if (fault := row.fault())] == []


@pytest.fixture
def row() -> Row:
    return Row(
        name="tiny", shape=(3, 16, 16), error=1e-6, error_exact=1e-6, module_error_exact=1e-6,
        blocks=("stem", "layer1.0", "fc"), adds=1, adds_fused=1, floating={"Tanh": 1}, tensors=3,
        tensorrt="built, 1 of 1 fused",
    )  # fmt: skip


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
    assert msgspec.structs.replace(row, **changes).fault() == fault

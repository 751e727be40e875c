"""``docs/zoo.md`` is what its raw results say."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.rows import RESULTS
from benchmarks.zoo.files import FILES
from benchmarks.zoo.page import PAGE, Row, Zoo, page


def test_the_page_is_made_from_the_raw_results() -> None:
    (path,) = RESULTS.glob("*/zoo-*.json")
    found = msgspec.json.decode(path.read_bytes(), type=Zoo)
    assert PAGE.read_text("utf-8") == page(found, path)
    assert {row.name for row in found.rows} <= {file.path for file in FILES} | {
        "tensorflow/saved_model, by tf2onnx"
    }


def test_trained_files_reach_what_their_author_measured() -> None:
    (path,) = RESULTS.glob("*/zoo-*.json")
    rows = {row.name: row for row in msgspec.json.decode(path.read_bytes(), type=Zoo).rows}
    for row in rows.values():
        if row.measured is None or row.fp32 is None:
            continue
        ours = row.fp32 if row.measured_on == 10_000 else row.fp32_first
        assert ours == pytest.approx(row.measured, abs=0.01)
        assert row.agreement is not None
        assert row.agreement >= 0.97
    for precision in ("fp32", "int8"):
        plain, deep, residual, deeper = (
            getattr(rows[f"torch/{name}-bias.pth"], precision)
            for name in ("plainnet20", "plainnet56", "resnet20", "resnet56")
        )
        assert deep < plain
        assert deeper > max(residual, plain)


def test_a_refusal_stands_below_the_table(tmp_path) -> None:
    (path,) = RESULTS.glob("*/zoo-*.json")
    found = msgspec.json.decode(path.read_bytes(), type=Zoo)
    refused = msgspec.structs.replace(found, rows=(Row(name="a/b", said="error: convert it"),))
    assert "| `a/b` |  |  |  |" in page(refused, tmp_path / "x.json")
    assert "- `a/b`: error: convert it" in page(refused, tmp_path / "x.json")

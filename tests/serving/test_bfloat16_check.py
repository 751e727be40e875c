"""What an export says about rounding to bfloat16 by a server that does not set the precision."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import openvino as ov
import pytest

from rescompile.errors import EngineError
from rescompile.serving import bfloat16_check
from rescompile.serving.export import ExportConfig, export
from rescompile.serving.openvino_graph import write_precise
from tests.backends.graphs import residual_net, sample_images
from tests.serving.conftest import Exportable
from tests.serving.test_openvino_graph import _engine as engine


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return engine(residual_net("fp32"), sample_images(4), tmp_path)


def rounding(monkeypatch: pytest.MonkeyPatch, found: float | RuntimeError | None) -> None:
    def measured(path: Path, images: object) -> float | None:
        if isinstance(found, RuntimeError):
            raise found
        return found

    monkeypatch.setattr(bfloat16_check, "rounding", measured)


def test_what_is_measured_is_the_rounding_of_layers_without_the_mark(plain: Path, tmp_path: Path) -> None:
    images = sample_images(4)
    error = bfloat16_check.rounding(plain, images)
    if error is None:
        pytest.skip("this CPU cannot compute in bfloat16")
    assert 1e-3 < error < 1e-2
    write_precise(ov.Core().read_model(plain), tmp_path / "precise.xml")
    assert bfloat16_check.rounding(tmp_path / "precise.xml", images) == 0
    said = bfloat16_check.note(plain, images, plain)
    assert said is not None
    assert "the server rounds some layers, which moves the answers by 0." in said


def test_a_graph_that_answers_otherwise_is_not_exported(plain: Path, tmp_path: Path) -> None:
    tree = ElementTree.parse(plain)
    (first, *_) = (each for each in tree.iter("layer") if each.get("type") == "ReLU")
    first.set("type", "Abs")
    tree.write(tmp_path / "other.xml")
    (tmp_path / "other.bin").write_bytes(plain.with_suffix(".bin").read_bytes())
    with pytest.raises(EngineError, match=r"does not answer as the engine .*--python"):
        bfloat16_check.note(tmp_path / "other.xml", sample_images(4), plain)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "this CPU cannot show whether"),
        (RuntimeError("no such layer"), "does not compile this graph on CPUs with bfloat16"),
        (0.02, "moves the answers by 2 % .*--python or --server openvino"),
    ],
)
def test_an_export_notes_what_was_found(
    found: float | RuntimeError | None, said: str, exportable: Exportable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rounding(monkeypatch, found)
    folder = exportable()
    notes = export(folder, ExportConfig(server="triton", output=tmp_path / "a")).notes
    assert len(notes) == 1
    assert re.search(said, notes[0])
    assert export(folder, ExportConfig(server="openvino", output=tmp_path / "b")).notes == ()


def test_an_export_whose_answers_hardly_move_notes_nothing(
    exportable: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding(monkeypatch, 1e-5)
    assert export(exportable(), ExportConfig(server="triton", output=tmp_path / "a")).notes == ()

"""``golden.npz``: the same bytes for the same arrays, and refusals of damaged files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rescompile.errors import EngineError
from rescompile.manifest import read_manifest
from rescompile.runtime.golden import golden_bytes, read_golden
from tests.backends.engines import make_engine
from tests.backends.graphs import CLASSES, sample_images


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine whose golden answers every test replaces."""
    folder = tmp_path_factory.mktemp("built") / "engine"
    make_engine(folder, backend="onnxruntime")
    return folder


def test_what_was_written_is_read(built: Path) -> None:
    images, logits = sample_images(2), np.arange(2 * CLASSES, dtype=np.float32).reshape(2, CLASSES)
    (built / "golden.npz").write_bytes(golden_bytes(images, logits))
    found_images, (found_logits,) = read_golden(built, read_manifest(built))
    found = found_images, found_logits
    assert np.array_equal(found[0], images)
    assert np.array_equal(found[1], logits)


@pytest.mark.parametrize(
    "content",
    [
        b"no archive",
        golden_bytes(sample_images(2), np.zeros((2, 3), np.float32)),
        golden_bytes(sample_images(2), np.full((2, CLASSES), np.inf, np.float32)),
        golden_bytes(sample_images(2)[:0], np.zeros((0, CLASSES), np.float32)),
    ],
)
def test_golden_answers_that_make_no_sense_are_refused(built: Path, content: bytes) -> None:
    (built / "golden.npz").write_bytes(content)
    with pytest.raises(EngineError, match=r"golden\.npz (does not hold golden|does not fit)"):
        read_golden(built, read_manifest(built))


def test_golden_answers_are_never_unpickled(built: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, images=np.array([{"code": 1}], object), logits=np.zeros(1))
    (built / "golden.npz").write_bytes(stream.getvalue())
    with pytest.raises(EngineError, match="does not hold golden images"):
        read_golden(built, read_manifest(built))


def test_golden_bytes_do_not_depend_on_the_clock() -> None:
    images, logits = sample_images(2), np.zeros((2, CLASSES), np.float32)
    made = golden_bytes(images, logits)
    assert golden_bytes(images.copy(), logits.copy()) == made
    assert {entry.date_time for entry in zipfile.ZipFile(io.BytesIO(made)).infolist()} == {
        (1980, 1, 1, 0, 0, 0)
    }

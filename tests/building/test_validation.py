"""An engine is judged on the user's images, else on calibration images, else on photographs, and a note says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from calibration.errors import ImageSetError
from rescompile.backends import get_backend
from rescompile.backends.base import Availability
from rescompile.building.source import Source
from rescompile.building.validation import SIMULATED_IMAGES, Validation, choose_validation
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import UsageError
from rescompile.report import Limits

DROP = Limits(max_top1_drop=1.0)


def chosen(source: Source, *, executed: bool = True, **fields: Any) -> Validation:
    backend = get_backend("openvino")
    can = Availability(build=True, run=executed, reason="")
    with patch.object(type(backend), "availability", return_value=can):
        return choose_validation(BuildConfig(model=ModelConfig(weights="net.pth"), **fields), source, backend)


@pytest.fixture
def labelled(small: Path, tmp_path: Path) -> Any:
    """Writes the small images with other labels."""

    def write(labels: np.ndarray[Any, Any] | None) -> Path:
        with np.load(small / "images.npz") as arrays:
            extra = {} if labels is None else {"labels": labels}
            np.savez(tmp_path / "set.npz", images=arrays["images"], **extra)
        return tmp_path / "set.npz"

    return write


def test_the_users_set_judges_and_needs_no_words(small: Path, small_source: Source) -> None:
    found = chosen(small_source, validation_set=small / "images.npz", validation_images=5)
    assert (len(found.images), found.notes, found.executed) == (5, (), True)


def test_the_calibration_set_stands_in(small: Path, small_source: Source) -> None:
    found = chosen(small_source, calibration=CalibrationConfig(images=small / "images.npz"))
    assert len(found.images) == 24
    assert found.images.labels is not None
    assert "measured on images.npz; pass --validation-set" in found.notes[0]


def test_photographs_stand_in_last(small_source: Source) -> None:
    found = chosen(small_source, precision="fp32")
    assert (found.images.source, len(found.images)) == ("built-in photographs", 128)
    assert "measured on built-in photographs" in found.notes[0]


@pytest.mark.parametrize(("asked", "count"), [(None, SIMULATED_IMAGES), (3, 3), (1000, SIMULATED_IMAGES)])
def test_a_graph_in_the_engines_place_sees_fewer_images(
    small_source: Source, asked: int | None, count: int
) -> None:
    found = chosen(small_source, executed=False, precision="fp32", validation_images=asked)
    assert len(found.images) == count
    assert "cannot run on this machine" in found.notes[-1]
    assert "`rescompile verify`" in found.notes[-1]


def test_a_drop_is_refused_before_the_build_where_nothing_has_labels(
    small_source: Source, labelled: Any
) -> None:
    with pytest.raises(
        UsageError, match="--max-top1-drop and --min-top1 need labels, which built-in photographs"
    ):
        chosen(small_source, precision="fp32", limits=DROP)
    bare = labelled(None)
    with pytest.raises(UsageError, match=r"which set\.npz does not have; pass a labelled --validation-set"):
        chosen(small_source, calibration=CalibrationConfig(images=bare), limits=DROP)
    with pytest.raises(ImageSetError, match=r"set\.npz has no labels, which are needed here"):
        chosen(small_source, validation_set=bare, limits=DROP)


def test_labels_beyond_the_classes_are_refused_with_their_image(labelled: Any, small_source: Source) -> None:
    labels = np.zeros(24, np.int64)
    labels[7] = 10
    path = labelled(labels)
    with pytest.raises(
        ImageSetError, match=r"set\.npz: images\[7\] has label 10, the network has classes 0 to 9"
    ):
        chosen(small_source, validation_set=path)
    assert chosen(replace(small_source, class_count=11), validation_set=path).images.labels is not None


def test_a_calibration_set_needs_no_labels_that_fit(labelled: Any, small_source: Source) -> None:
    calibration = CalibrationConfig(images=labelled(np.full(24, 999)))
    assert chosen(small_source, calibration=calibration).images.labels is None


def test_images_left_out_of_the_validation_set_are_named(small_source: Source, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    skipping = CalibrationConfig(skip_unreadable=True)
    found = chosen(small_source, precision="fp32", validation_set=tmp_path, calibration=skipping)
    assert len(found.images) == 1
    assert "broken.png" in found.notes[0]

"""Time by layer of OpenVINO engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rescompile.backends.profiling import open_profiler
from rescompile.errors import BackendError, UsageError
from rescompile.manifest import read_manifest
from rescompile.runtime.golden import read_golden
from tests.backends.engines import make_engine, manifest


def test_layers_name_the_nodes_that_they_compute_and_logits_are_the_engines(
    small_engines: dict[str, Path],
) -> None:
    directory = small_engines["int8"]
    found = read_manifest(directory)
    images, (expected,) = read_golden(directory, found)
    profiler = open_profiler(directory, found, threads=1)
    logits, layers = profiler(images[:1], 3)
    profiler.close()
    profiler.close()
    assert np.abs(logits - expected[:1]).max() < 0.1 * np.abs(expected).max()
    weighted = [layer for layer in layers if layer.kind == "weighted"]
    named = {name for layer in weighted for name in layer.origins}
    assert {"conv1", "layer1.0.conv1", "layer3.2.conv2"} <= named
    assert all(layer.ms >= 0 for layer in layers)
    assert sum(layer.ms for layer in weighted) > 0
    assert {layer.precision for layer in weighted} <= {"u8", "i8"}
    assert "reformat" in {layer.kind for layer in layers}


def test_a_damaged_payload_is_refused_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net/>")
    (tmp_path / "model.bin").touch()
    with pytest.raises(BackendError, match="OpenVINO cannot load"):
        open_profiler(tmp_path, manifest("fp32", "openvino"))


def test_a_backend_whose_layers_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"onnxruntime, whose layers.*openvino, tensorrt, tensorrt-rtx"):
        open_profiler(tmp_path, make_engine(tmp_path / "e", backend="onnxruntime"))

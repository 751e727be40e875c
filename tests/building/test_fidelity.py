"""Our graph may differ from the user's file by as much as two executions of that file do, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from rescompile.backends.onnxruntime import reference_session
from rescompile.building.fidelity import MOST_TOLERANCE, TOLERANCE, relative_error, tolerance_beside
from rescompile.building.opening import open_source
from rescompile.config import ModelConfig, PreprocessOptions
from rescompile.progress import Silent
from tests.graph.random_graphs import Writer


def cancelling() -> onnx.ModelProto:
    """Batch norms that take large biases away again: summing in another order changes the last digits much."""
    writer = Writer((3, 12, 12))
    x = "x"
    for _ in range(2):
        x = writer.norm(writer.conv(x, 8))
        bias, mean = (list(writer.constants)[place] for place in (-5, -2))
        writer.constants[bias] += np.float32(2e4)
        writer.constants[mean] = writer.constants[bias].copy()
        x = writer.relu(x)
    return writer.done(writer.head(x))


def test_rounding_that_the_file_has_itself_is_no_difference(tmp_path: Path) -> None:
    model = cancelling()
    onnx.save(model, tmp_path / "net.onnx")
    source = open_source(
        ModelConfig(
            onnx=tmp_path / "net.onnx", preprocess=PreprocessOptions(mean=(0.5,) * 3, std=(0.5,) * 3)
        ),
        Silent(),
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12), dtype=np.float32)
    (ours,) = reference_session(source.graph.SerializeToString(), optimize=True).tensors(x).values()
    theirs = [
        next(iter(reference_session(model.SerializeToString(), optimize=each).tensors(x).values()))
        for each in (False, True)
    ]
    assert relative_error(theirs[0], ours) > TOLERANCE
    assert relative_error(*theirs) > TOLERANCE / 3


@pytest.mark.parametrize(
    ("noise", "allowed"), [(1e-6, TOLERANCE), (2e-4, 6e-4), (0.1, MOST_TOLERANCE), (np.nan, TOLERANCE)]
)
def test_the_tolerance_follows_the_noise_within_bounds(noise: float, allowed: float) -> None:
    assert tolerance_beside(noise) == pytest.approx(allowed)

"""Default tiles beside those of the other kind, with a compiler whose figures the test makes up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks.compiled_kernels.operands import Plane, activation, batch_norm, output, weight
from benchmarks.gpu import model_programs
from benchmarks.gpu.devices import DEVICES, Device
from benchmarks.gpu.model import Predicted
from benchmarks.gpu.model_programs import LARGE, as_markdown, compare
from fused_kernels.launch import Launch, implementation, recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution

PLANE, WINDOW = Plane(256, 256, 14), Conv(3, 3, padding=1)


def record() -> None:
    """One product with a long reduction, twice."""
    dy, w = output(PLANE, WINDOW, torch.bfloat16), weight(PLANE, WINDOW, torch.bfloat16)
    y, vectors = activation(PLANE, torch.bfloat16), batch_norm(PLANE.c)
    with implementation("kernels"), recording():
        for _ in range(2):
            convolution.dgrad_drelu(dy, w, WINDOW, y, vectors)


@pytest.mark.parametrize(
    ("alone", "row"),
    [
        (LARGE, f"| 128x128x64 8w 2s 128r | 2 | 100 | 90 | 1.000 | {LARGE} | 1 | 200 | 90 | 2.000 |"),
        (
            "128x128x64 8w 2s 128r",
            "| 128x128x64 8w 2s 128r | 1 | 200 | 90 | 2.000 | 64x128x64 4w 3s 168r | 2 |",
        ),
        ("all", "| 128x128x64 8w 2s 128r | 1 | 200 | 90 | 2.000 | - | - | - | - | - |"),
    ],
)
def test_the_other_tile_leaves_the_other_number_of_programs(
    alone: str, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(launches: Sequence[Launch], device: Device, jobs: int) -> list[Predicted]:
        """A launch with a processor to itself takes 1 ms and others half of it; the smallest tile is the slowest."""
        made = []
        for launch in launches:
            single = alone in {launch.tile.name, "all"}
            ms = 1.0 if single else 0.5 if launch.tile.m * launch.tile.n >= 64 * 128 else 0.9
            figures = {"memory": ms, "cache": 0.0, "tensor": 0.0, "issue": 0.0, "waits": 0.0}
            made.append(
                Predicted(
                    launch, 1 if single else 2, 200 if single else 100, 90, **figures, alone=0.0, gap=0.0
                )
            )
        return made

    monkeypatch.setattr(model_programs, "predict", predict)
    pairs = compare(record, DEVICES["h100"], 1)
    assert [pair.count for pair in pairs] == [2]
    lines = as_markdown(pairs).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith(f"| conv identity drelu 3x3 | 2 {row}")

"""Time by layer of TensorRT engines; the library is a fake that reports what it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rescompile.backends.profiling import PROFILERS, LayerTime, open_profiler
from rescompile.backends.tensorrt import profile
from rescompile.backends.tensorrt.backend import TensorRt
from rescompile.backends.tensorrt.profile import _layer
from rescompile.manifest import Manifest
from tests.backends.engines import manifest
from tests.backends.graphs import sample_images
from tests.backends.tensorrt.test_runner import network, runner

REPORTED = [
    ("layer1.0.conv1 + layer1.0.relu1", 0.5),
    ("Reformatting CopyNode for Input Tensor 0 to fc", 0.25),
]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_each_layers_mean_over_the_runs_comes_back(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = network()
    trt.reported = REPORTED

    def load(self: Any, directory: Path, found: Manifest) -> Any:
        return runner(trt)

    monkeypatch.setattr(TensorRt, "load", load)
    monkeypatch.setattr(TensorRt, "library", lambda self: trt)
    profiler = open_profiler(Path(), manifest("fp32", backend), threads=3)
    logits, layers = profiler(sample_images(2), 3)
    profiler.close()
    assert logits.shape[0] == 2
    assert len(trt.executed) == 5, "two to warm up, three that count"
    assert [layer.ms for layer in layers] == [0.5 * 4, 0.25 * 4]
    assert layers[0].origins == ("layer1.0.conv1", "layer1.0.relu1")
    assert trt.gpu.nothing_left()


@pytest.mark.parametrize(
    ("name", "kind", "origins"),
    [
        ("conv1 + relu1", "weighted", ("conv1", "relu1")),
        ("layer2.0.downsample", "weighted", ("layer2.0.downsample",)),
        ("fc", "weighted", ("fc",)),
        ("maxpool", "pool", ("maxpool",)),
        ("Reformatting CopyNode for Input Tensor 0 to layer1.0.conv1", "reformat", ("layer1.0.conv1",)),
        ("input.quantize", "quantize", ("input.quantize",)),
        ("layer1.0.add + layer1.0.relu", "elementwise", ("layer1.0.add", "layer1.0.relu")),
        ("__mye_1", "other", ("__mye_1",)),
    ],
)
def test_kinds_and_origins_come_from_the_layers_name(name: str, kind: str, origins: tuple[str, ...]) -> None:
    expected = LayerTime(name=name, origins=origins, kind=kind, implementation="", precision="", ms=1.0)
    assert _layer(name, 1.0) == expected


def test_every_listed_profiler_is_there() -> None:
    for place in PROFILERS.values():
        module, _, factory = place.partition(":")
        assert hasattr(__import__(module, fromlist=[factory]), factory)
    assert profile.full.keywords == {"module": "tensorrt"}

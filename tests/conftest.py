"""Fixtures that every test may use: real data where it is, and small data of our own.

Kernels run in Triton's interpreter. Triton and the kernels read ``TRITON_INTERPRET`` when they are imported, so it is
set here, before any test module is, and the kernels are imported at once.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest
import torch
from hypothesis import settings

import fused_kernels.kernels
import rescompile.backends.cpu.forms
import rescompile.building.verdict
from calibration.preprocess import CIFAR, normalize
from rescompile.building.opening import open_source
from rescompile.building.source import Source
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.manifest import Batch
from rescompile.measuring import speedup
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.optional import installed
from rescompile.pipeline import build
from rescompile.progress import Silent
from rescompile.report import Limits
from tests.workers import (  # noqa: F401  pytest finds them here
    pytest_configure,
    pytest_testnodedown,
    pytest_xdist_make_scheduler,
)

# the same examples in every run of a commit; elsewhere new ones are drawn, and may find something new
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# an engine that a test loads leaves nothing in the user's cache; tests of the cache switch it on
os.environ["RESCOMPILE_ENGINE_CACHE"] = "off"

# builds in tests need no exact times
speedup.SECONDS, speedup.TURN_SECONDS, speedup.REST = 0.0, 0.0, lambda _: None

# nor pages, which take a tenth of a build's time; those of test_pipeline.py have them
rescompile.building.verdict.render = lambda _: "no page"

# engines have the same form on every machine, the one that all of them compute exactly; tests of others simulate them
rescompile.backends.cpu.forms.machine_form = lambda: "avx2"

if installed("onnxruntime"):
    import onnxruntime

    class IdleOptions(onnxruntime.SessionOptions):  # type: ignore[misc]
        """Options of sessions whose idle threads do not spin: that took a fifth of the time of every build."""

        def __init__(self) -> None:
            super().__init__()
            super().add_session_config_entry("session.intra_op.allow_spinning", "0")

        def add_session_config_entry(self, name: str, value: str) -> None:
            if name != "session.intra_op.allow_spinning":
                super().add_session_config_entry(name, value)

    onnxruntime.SessionOptions = IdleOptions

if installed("triton"):
    os.environ["TRITON_INTERPRET"] = "1"
    for module in iter_modules(fused_kernels.kernels.__path__):
        # now, and not when first launched: a test may have another environment by then
        import_module(f"fused_kernels.kernels.{module.name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker waits for another one's in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def young_garbage() -> Iterator[None]:
    """``gc.collect`` looks only at what the tests of this module make: at all of torch it takes 0.4 s each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real checkpoints and images that RESCOMPILE_DATA names."""
    folder = os.environ.get("RESCOMPILE_DATA")
    if not folder:
        pytest.skip("RESCOMPILE_DATA is not set: no real checkpoints and images here")
    return Path(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.pth`` (a CIFAR ResNet-20 with random weights) and ``images.npz`` (24 labelled images), read-only.

    Most labels are what the network says, as a trained network's are.
    """
    folder = tmp_path_factory.mktemp("small")
    model, _ = random_model(find(depth=None, name="resnet20-cifar"), 10, seed=0)
    torch.save(model.state_dict(), folder / "net.pth")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)  # patches, so that neighbouring pixels are alike
    with torch.inference_mode():
        labels = model(torch.from_numpy(normalize(images, CIFAR))).argmax(1).numpy()
    labels[::8] = rng.integers(0, 10, 3)
    np.savez(folder / "images.npz", images=images, labels=labels)
    return folder


@pytest.fixture(scope="session")
def small_source(small: Path) -> Source:
    """The network of ``net.pth``, loaded, exported and folded."""
    return open_source(ModelConfig(weights=str(small / "net.pth")), Silent())


@pytest.fixture(scope="session")
def small_engines(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OpenVINO engine directories of ``net.pth`` by precision, int8 and fp32; read-only."""
    folder = tmp_path_factory.mktemp("engines")
    for precision in ("int8", "fp32"):
        images = CalibrationConfig(images=small / "images.npz", limit=8, effort="fast")
        build(
            BuildConfig(
                model=ModelConfig(weights=str(small / "net.pth")),
                precision=precision,
                backend="openvino",
                batch=Batch(1, 1, 4),
                calibration=images if precision == "int8" else CalibrationConfig(),
                validation_set=small / "images.npz",
                limits=Limits(),
                output=folder / precision,
            )
        )
    return {precision: folder / precision for precision in ("int8", "fp32")}

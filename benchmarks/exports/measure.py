"""One exported network: its graph beside the module, what runs in INT8, and the engines of two backends."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.exports.page import Row
from calibration.images import InMemoryImages
from calibration.preprocess import Color, Preprocess
from rescompile import pipeline
from rescompile.backends import get_backend
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.block_check import check_blocks
from rescompile.building.fidelity import relative_error
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import RescompileError
from rescompile.graph.shared.topology import block_outputs
from rescompile.manifest import GRAPH, REFERENCE, Batch
from rescompile.report import BuildReport, Limits
from rescompile.sources.modules import network_of

IMAGES = 8
COMPARED = 2
"""Images that the graph and the module are compared on."""
TARGET = "sm_89"
"""GPU that TensorRT for RTX builds for; none is needed here."""
_COLORS: dict[int, Color] = {1: "GRAY", 3: "RGB", 4: "RGBA"}


def measured(name: str, module: nn.Module, shape: tuple[int, int, int], folder: Path) -> Row:
    """Build ``module`` for images of ``shape`` (C, H, W) twice in ``folder``, and compare.

    Raises:
        RescompileError: it cannot be built for OpenVINO; the reason is the message.
    """
    channels, *size = shape
    halves = (0.5,) * channels
    preprocess = Preprocess(
        resize=size[0],
        crop=size[0],
        interpolation="bilinear",
        mean=halves,
        std=halves,
        color=_COLORS[channels],
    )
    images = np.random.default_rng(1).standard_normal((IMAGES, *shape), dtype=np.float32)
    config = BuildConfig(
        model=ModelConfig(network=network_of(module, preprocess=preprocess)),
        calibration=CalibrationConfig(images=InMemoryImages(images=images), effort="fast"),
        limits=Limits(),
        backend="openvino",
        batch=Batch(1, 1, COMPARED),
        output=folder / "openvino",
    )
    report = pipeline.build(config)
    reference = onnx.load(folder / "openvino" / REFERENCE)
    images = images[:COMPARED]
    own, exact = _answers(module, images), _answers(copy.deepcopy(module).double(), images.astype(np.float64))
    ours = list(reference_session(reference.SerializeToString(), optimize=True).tensors(images).values())
    deployable = onnx.load(folder / "openvino" / GRAPH)
    assert report.fused is not None
    return Row(
        name=name,
        shape=shape,
        error=_largest(own, ours),
        error_exact=_largest(exact, ours),
        module_error_exact=_largest(exact, own),
        blocks=tuple(block_outputs(reference)),
        adds=report.fused.of,
        adds_fused=report.fused.fused,
        floating={each.reason: len(each.nodes) for each in report.lint.floating},
        tensors=check_blocks(folder / "openvino", get_backend("openvino"), deployable, images),
        tensorrt=_tensorrt(replace(config, backend="tensorrt-rtx", target=TARGET, output=folder / "rtx")),
    )


def _answers(module: nn.Module, images: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    with torch.inference_mode():
        found = module(torch.from_numpy(images))
    return [answer.numpy() for answer in (found if isinstance(found, tuple) else (found,))]


def _largest(expected: list[NDArray[np.floating]], found: list[NDArray[np.floating]]) -> float:
    """The largest relative RMS of all outputs."""
    return max(relative_error(one, other) for one, other in zip(expected, found, strict=True))


def _tensorrt(config: BuildConfig) -> str:
    try:
        report: BuildReport = pipeline.build(config)
    except RescompileError as error:
        return f"not built: {str(error).splitlines()[0]}"
    assert report.fused is not None
    return f"built, {report.fused.fused} of {report.fused.of} fused"

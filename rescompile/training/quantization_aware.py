"""``rescompile train --qat``: fine-tuning of a trained network in the very graph that the builder will make of it.

The network is calibrated as a build with the most effort does, and begins with its integers and biases,
so the best checkpoint is not farther from the fp32 network than calibration alone. Equalized weights are written into
the checkpoint and the scales into a table beside it, which keeps no channel means: a build with that table rounds to
the nearest and changes no bias, as in training. Batch norms are folded from the first step on, because INT8 scales
belong to folded weights.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import torch
from torch import Tensor, nn

from calibration.images.arrays import InMemoryImages
from calibration.scales import NARROW_LEVELS
from calibration.table import CalibrationTable
from rescompile.backends import choose_backend, get_backend
from rescompile.building.calibrate import calibrate
from rescompile.building.opening import open_source
from rescompile.building.quantize import narrow_nodes, quantize
from rescompile.config import CalibrationConfig, ModelConfig
from rescompile.errors import UsageError
from rescompile.files import sha256_of
from rescompile.graph.equalize import equalize
from rescompile.graph.pixels import to_pixels
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.topology import scale_sources
from rescompile.models.resnet import ResNet
from rescompile.progress import Silent
from rescompile.training.fake_quantized import FakeQuantized, coarse_levels
from rescompile.training.feed import calibration_sample
from rescompile.training.keeping import Origin
from rescompile.training.loop import Loss
from rescompile.training.networks import Start
from rescompile.training.run_folder import BEST, LAST, RunFolder
from rescompile.training_report import EpochRecord

TABLE = "calibration.json"
_NORM = re.compile(r"conv(\d+)$")
_IDENTITY_VARIANCE = 1 - 1e-5
"""With a batch norm's epsilon added this is 1 within half a unit of float32, so folding changes no weight."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The network to fine-tune, and the table of its scales."""

    network: FakeQuantized
    table: CalibrationTable
    teacher: nn.Module


def prepare(
    weights: Path,
    start: Start,
    origin: Origin,
    *,
    backend: str,
    learned_scales: bool,
    weight_bits: int,
    images: int,
) -> Prepared:
    """Calibrate the network of ``weights`` for ``backend`` on ``images`` of the training images.

    Raises:
        UsageError: its norms do not fold into convolutions.
        RescompileError, CalibrationError: as a build of these weights would.
    """
    if not isinstance(start.network, ResNet) or start.spec.pre_activation:
        raise UsageError(
            f"--qat trains networks whose batch norms fold into the convolutions before them, and those of "
            f"{start.spec.name} do not: build it with --effort best instead"
        )
    source = open_source(ModelConfig(weights=str(weights), model=start.spec.name), Silent())
    pixels, _ = calibration_sample(origin.data, source.preprocess, images)
    config = CalibrationConfig(
        images=InMemoryImages(pixels, None, origin.data.name),
        limit=images,
        effort="best",
    )
    name = choose_backend()[0] if backend == "auto" else backend
    calibrated = calibrate(source, config, Silent(), get_backend(name).int8)
    factors = calibrated.table.factors()
    exact = equalize(source.graph, factors) if factors else source.graph
    levels = {
        **dict.fromkeys(narrow_nodes(source, calibrated), NARROW_LEVELS),
        **coarse_levels(exact, weight_bits),
    }
    quantized = quantize(source, calibrated, Silent(), levels=levels)
    network = FakeQuantized(
        exact,
        quantized,
        pixels=to_pixels(source.preprocess) if calibrated.exact_pixels else None,
        shared=scale_sources(read(exact)),
        levels=levels,
        learned_scales=learned_scales,
    )
    teacher = start.network.eval().requires_grad_(requires_grad=False)
    return Prepared(network, _scales_alone(calibrated.table), teacher)


def distillation(teacher: nn.Module, device: torch.device) -> Loss:
    """Squared relative RMS of the network's logits against those of ``teacher``: what a build's verdict measures.

    Probabilities would say less: where one is close to 1, the logits may be far from the teacher's.
    """
    exact = teacher.to(device)

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.inference_mode():
            wanted = exact(images).float()
        squared: Tensor = (logits - wanted.clone()).square().sum() / wanted.square().sum()
        return squared

    return loss


@dataclass(frozen=True, eq=False)
class QuantizedKeeper:
    """Writes checkpoints of the fp32 network that the builder turns into the trained graph, and their table."""

    folder: RunFolder
    origin: Origin
    table: CalibrationTable

    def keep(self, network: nn.Module, record: EpochRecord, *, best: bool) -> None:
        """See ``loop.Keeper``."""
        quantized = cast(FakeQuantized, network)
        tensors = as_checkpoint(quantized, cast(ResNet, self.origin.start.network))
        self.folder.write_tensors(LAST, tensors, self.origin.of(record))
        if best:
            self.folder.write_tensors(BEST, tensors, self.origin.of(record))
            path = self.folder.path / BEST
            _table_of(self.table, quantized, sha256_of(path)).write(self.folder.path / TABLE)


def as_checkpoint(network: FakeQuantized, form: ResNet) -> dict[str, Tensor]:
    """The fp32 weights under the names of ``form``, whose batch norms become the addition of a bias."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in form.state_dict().items()}
    modules = dict(form.named_modules())
    for node in network.nodes:
        weight, bias = (values.cpu() for values in network.exact_parameters(node))
        layer = node if node in modules and not isinstance(modules[node], nn.Sequential) else f"{node}.0"
        state[f"{layer}.weight"] = weight
        if isinstance(modules[layer], nn.Linear):
            state[f"{layer}.bias"] = bias
            continue
        norm = f"{node}.1" if layer != node else _NORM.sub(r"bn\1", node)
        state[f"{norm}.weight"] = torch.ones_like(bias)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.full_like(bias, _IDENTITY_VARIANCE)
    return state


def _scales_alone(table: CalibrationTable) -> CalibrationTable:
    """``table`` without the entries by which a build would change weights."""
    tensors = {
        name: msgspec.structs.replace(entry, channel_means=b"", channel_factors=b"")
        for name, entry in table.tensors.items()
    }
    return _signed(msgspec.structs.replace(table, tensors=tensors, first_moments=b""))


def _table_of(table: CalibrationTable, network: FakeQuantized, sha256: str) -> CalibrationTable:
    """``table`` with the scales of ``network``, for the checkpoint with ``sha256``."""
    scales = network.activation_scales()
    tensors = {}
    for name, entry in table.tensors.items():
        scale = scales.get(name, entry.scale)
        if not math.isclose(scale, entry.scale, rel_tol=1e-9):
            threshold = scale * entry.levels
            entry = msgspec.structs.replace(  # noqa: PLW2901
                entry,
                scale=scale,
                threshold=threshold,
                thresholds={**entry.thresholds, table.method: threshold},
            )
        tensors[name] = entry
    weights = {name: steps.astype("<f4").tobytes() for name, steps in network.weight_scales().items()}
    return _signed(
        msgspec.structs.replace(table, tensors=tensors, checkpoint_sha256=sha256, weight_scales=weights)
    )


def _signed(table: CalibrationTable) -> CalibrationTable:
    return msgspec.structs.replace(table, sha256=table.digest())

"""Sensitivity: how far the quantization of each block moves the logits, measured on calibration images.

Each block alone is INT8 and all others are fp32: its input, inner activations, weights and output are rounded. The
relative RMS of the logits against the fp32 network is the block's damage. Up to the block the fp32 activations are
taken from one run, so a network of n blocks costs about n / 2 runs an image.

The opposite, each block alone in fp32 and all others INT8, ranks worse. A tensor between two blocks stays quantized
until both are restored, so an outlier in the residual stream counts for neither block; and the small gain of one block
is lost in how the errors of the others happen to add up (it is negative for many). Relative RMS on validation images
with the k highest blocks restored, its mean square over all k:

    ResNet-20 (CIFAR-10), 1,000 images      fast 0.0229 against 0.0268, balanced 0.0202 against 0.0226
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.network import Network, Node, Values
from rescompile.graph.shared.names import DEQUANTIZE_SUFFIX
from rescompile.graph.shared.topology import block_outputs, quantizing_blocks
from rescompile.report import BlockDamage, JsonReport

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

IMAGES = 32
"""Default number of calibration images; more of them only reorder blocks with nearly equal damage."""
BATCH = 4
"""Images at once: ResNet-50 keeps 0.1 GB of activations for them."""


class SensitivityReport(JsonReport, frozen=True, kw_only=True):
    """The result of ``rescompile sensitivity``."""

    model: str
    images: int
    image_source: str
    together: float
    """Relative RMS with all blocks in INT8."""
    blocks: tuple[BlockDamage, ...]
    """In the order of execution."""
    ranking: tuple[str, ...]
    """Most damage first."""
    expected: dict[str, float] = msgspec.field(default_factory=dict)
    """See ``expected_damage``; empty where calibration took no gradients."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Damage:
    """Damage of each block alone, in the order of execution, and of all together, as relative RMS."""

    blocks: tuple[BlockDamage, ...]
    together: float


def ranked(damages: Sequence[BlockDamage]) -> tuple[str, ...]:
    """Names of the blocks, most damage first; of equal ones the earlier block."""
    return tuple(entry.block for entry in sorted(damages, key=lambda entry: -entry.relative_rms))


def expected_damage(original: onnx.ModelProto, errors: Mapping[str, float | None]) -> dict[str, float]:
    """Relative RMS that the noise model expects from the activations of each block, input and output included.

    ``errors`` are its expectations for each quantized tensor alone (``calibration.methods.comparison``). Weights are
    left out, and errors of several tensors are taken as independent. Empty where a tensor has no expectation.
    """
    squares = dict.fromkeys(block_outputs(original), 0.0)
    for tensor, blocks in quantizing_blocks(original).items():
        error = errors.get(tensor)
        if error is None:
            return {}
        for block in blocks:
            squares[block] += error**2
    return {block: float(np.sqrt(value)) for block, value in squares.items()}


def measure_damage(
    original: onnx.ModelProto,
    quantized: onnx.ModelProto,
    images: Sequence[NDArray[np.float32]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Damage:
    """Measure the damage of each block, and of all together, on ``images``.

    Args:
        original: folded fp32 graph, equalized where ``quantized`` is.
        quantized: the same with Q/DQ in every block.
        images: [3, H, W] each, preprocessed.
        progress: told how many of the images' blocks are done.

    Raises:
        CalibrationError: the graph has an operation that only ONNX Runtime executes.
    """
    import torch

    exact, rounded = Network(original), Network(quantized)
    blocks = block_outputs(original)
    detours = _detours(exact, rounded, list(blocks.values()))
    errors, energy, done = np.zeros(len(blocks) + 1), 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.stack(images[start : start + BATCH]))
            entries, logits = _run(exact, batch, keep={detour.entry for detour in detours})
            energy += _energy(logits)
            errors[-1] += _energy(rounded.run(batch) - logits)
            for index, detour in enumerate(detours):
                errors[index] += _energy(detour.logits(entries[detour.entry]) - logits)
                done += len(batch)
                if progress:
                    progress(done, len(images) * len(blocks))
    found = np.sqrt(errors / max(energy, np.finfo(np.float64).tiny))
    alone = tuple(BlockDamage(name, float(value)) for name, value in zip(blocks, found[:-1], strict=True))
    return Damage(alone, float(found[-1]))


def _energy(values: Tensor) -> float:
    return float(values.double().square().sum())


def _run(network: Network, batch: Tensor, *, keep: set[str]) -> tuple[Values, Tensor]:
    """Run the whole network; returns the tensors ``keep``, and the logits."""
    kept = {network.input: batch}

    def hold(node: Node, value: Tensor) -> None:
        if node.output in keep:
            kept[node.output] = value

    logits = network.run(batch, hold)
    return kept, logits


@dataclass(frozen=True)
class _Stretch:
    """The nodes of a network that depend on the tensor ``start`` alone, up to another tensor."""

    network: Network
    start: str
    nodes: tuple[tuple[int, Node], ...]
    """The nodes with their positions in the network."""

    @classmethod
    def between(cls, network: Network, start: str, stop: str) -> _Stretch:
        known, nodes = {start}, []
        for index, node in enumerate(network.nodes):
            if all(name in known or name in network.constants for name in node.inputs):
                known.add(node.output)
                nodes.append((index, node))
            if node.output == stop:
                break
        return cls(network, start, tuple(nodes))

    def __call__(self, value: Tensor) -> Tensor:
        """Compute the last tensor from ``value``, the first."""
        values = {self.start: value}
        for index, node in self.nodes:
            value = values[node.output] = self.network.step(node, values)
            for name in self.network.finished(index):
                values.pop(name, None)
        return value


@dataclass(frozen=True)
class _Detour:
    """One block in the quantized graph, everything behind it in the original one."""

    entry: str
    block: _Stretch
    rest: _Stretch | None
    """None behind the last block."""

    def logits(self, value: Tensor) -> Tensor:
        inside = self.block(value)
        return inside if self.rest is None else self.rest(inside)


def _detours(exact: Network, rounded: Network, outputs: Sequence[str]) -> list[_Detour]:
    """One for each block; ``outputs`` are the tensors at their ends, the logits last."""
    entries, ends = [exact.input, *outputs[:-1]], outputs[:-1]
    return [
        *(
            _Detour(
                entry,
                _Stretch.between(rounded, entry, end + DEQUANTIZE_SUFFIX),
                _Stretch.between(exact, end, exact.output),
            )
            for entry, end in zip(entries, ends, strict=False)
        ),
        # the pool in front of the classifier reads Q/DQ for the sake of the last residual block alone
        _Detour(
            entries[-1], _Stretch.between(rounded, entries[-1] + DEQUANTIZE_SUFFIX, rounded.output), None
        ),
    ]

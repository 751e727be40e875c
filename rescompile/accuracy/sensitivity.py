"""Sensitivity: how far the quantization of each block moves the logits, measured on calibration images.

Each block alone is INT8 and all others are fp32, as ``graph.restore`` puts them back: its input, inner activations,
weights and output are rounded. The relative RMS of the logits against the fp32 network is the block's damage; of
several outputs, the root of the mean square. What a block does not reach is taken from one fp32 run, so a chain of n
blocks costs about n / 2 runs an image.

The opposite, each block alone in fp32 and all others INT8, ranks worse. A tensor between two blocks stays quantized
until both are restored, so an outlier in the residual stream counts for neither block; and the small gain of one block
is lost in how the errors of the others happen to add up (it is negative for many). Relative RMS on validation images
with the k highest blocks restored, its mean square over all k:

    ResNet-20 (CIFAR-10), 1,000 images      fast 0.0229 against 0.0268, balanced 0.0202 against 0.0226
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.network import Network, Node, Values
from calibration.operators import WEIGHTED_OPS
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.topology import block_outputs, blocks_of_quantizers, quantizing_blocks
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
    blocks, needing = list(block_outputs(original)), blocks_of_quantizers(read(quantized))
    alone = [_alone(block, exact, rounded, needing) for block in blocks]
    reads = set[str]().union(*(each.reads for each in alone))
    together, errors, energy, done = np.zeros(1), np.zeros((len(blocks), len(exact.outputs))), np.zeros(1), 0
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(np.stack(images[start : start + BATCH]))
            kept, outputs = _run(exact, batch, reads)
            energy = energy + [_energy(output) for output in outputs]
            found = rounded.run_all(batch)
            together = together + [_energy(a - b) for a, b in zip(found, outputs, strict=True)]
            for index, block in enumerate(alone):
                changed = block(kept)
                errors[index] += [
                    _energy(changed[name] - output) if name in changed else 0.0
                    for name, output in zip(exact.outputs, outputs, strict=True)
                ]
                done += len(batch)
                if progress:
                    progress(done, len(images) * len(blocks))
    energy = np.maximum(energy, np.finfo(np.float64).tiny)
    damages = np.sqrt((errors / energy).mean(axis=1))
    return Damage(
        tuple(BlockDamage(name, float(value)) for name, value in zip(blocks, damages, strict=True)),
        float(np.sqrt((together / energy).mean())),
    )


def _energy(values: Tensor) -> float:
    return float(values.double().square().sum())


def _run(network: Network, batch: Tensor, keep: Collection[str]) -> tuple[Values, tuple[Tensor, ...]]:
    """Run the whole network; returns the tensors ``keep``, and all outputs."""
    kept = {network.input: batch}

    def hold(node: Node, value: Tensor) -> None:
        if node.output in keep:
            kept[node.output] = value

    outputs = network.run_all(batch, hold)
    return kept, outputs


@dataclass(frozen=True)
class _Alone:
    """The nodes whose values change when one block alone is quantized."""

    steps: tuple[tuple[Network, Node], ...]
    """Each with the network that holds its constants, the data under the names of this run."""
    reads: frozenset[str]
    """Tensors of the fp32 run."""
    outputs: Mapping[str, str]
    """Outputs of the network that change, and their names in this run."""

    def __call__(self, exact: Values) -> Values:
        """The outputs that change, by name."""
        values = {name: exact[name] for name in self.reads}
        last = {
            name: index for index, (_, node) in enumerate(self.steps) for name in (*node.inputs, node.output)
        }
        for index, (network, node) in enumerate(self.steps):
            values[node.output] = network.step(node, values)
            for name in {*node.inputs, node.output} - set(self.outputs.values()):
                if last[name] == index:
                    values.pop(name, None)
        return {output: values[name] for output, name in self.outputs.items()}


_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def _alone(block: str, exact: Network, rounded: Network, needing: Mapping[str, Collection[str]]) -> _Alone:
    """``block`` in INT8: its weights and the quantizers that it needs, with everything that they reach."""
    originals = {(node.name, node.output): node for node in exact.nodes}
    steps: list[tuple[Network, Node]] = []
    changed: set[str] = set()
    renamed: dict[str, str] = {}
    """Outputs of quantizers that are left out, and what is read in their place."""
    for node in rounded.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        left_out = (
            block not in needing[node.inputs[0]]
            if node.op == "QuantizeLinear"
            else node.op == "DequantizeLinear" and node.inputs[0] in renamed
        )
        if left_out:
            renamed[node.output] = inputs[0]
        elif node.op in _QUANTIZERS or (node.op in WEIGHTED_OPS and block_of(node.name) == block):
            steps.append((rounded, replace(node, inputs=inputs)))
            changed.add(node.output)
        elif not changed.isdisjoint(inputs):
            # constants under the names of the fp32 network, data as it is here
            names = zip(originals[node.name, node.output].inputs, inputs, strict=True)
            inputs = tuple(name if name in exact.constants else mine for name, mine in names)
            steps.append((exact, replace(node, inputs=inputs)))
            changed.add(node.output)
    needed = {
        name for network, node in steps for name in node.inputs if name and name not in network.constants
    }
    ends = {name: renamed.get(name, name) for name in rounded.outputs}
    return _Alone(
        tuple(steps), frozenset(needed - changed), {name: end for name, end in ends.items() if end in changed}
    )

"""Weights rounded for the activations that they will be multiplied with, one layer after the other.

A layer of the deployable graph reads x', quantized and with the errors of all layers before it. With H = cov(x') over
calibration images and positions, the columns of W are rounded one by one, and the error of each is spread over those
that are still to be rounded, so that |(Q - W) x'|^2 stays small (Frantar et al., 2022, "GPTQ", after Hassibi and Stork,
1993). The bias is changed to cancel the mean of the error:

    b' = b + (W - Q) mean(x)

A refit of W to x' before rounding (least squares with a ridge) was not better on unseen images, whatever the ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.network import Network, Node, Values, groups_of, output_first, sole_convolution
from calibration.operators import WEIGHTED_OPS
from calibration.scales import LEVELS, channel_scales

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

IMAGES = 64
"""Images whose activations are kept at once: 1.3 GB for ResNet-50 at 224 pixels."""

CHUNK = 4
DAMPING = 0.01
"""Damping: share of the input's mean variance that is added to H, so that few images do not decide alone."""
_POSITIONS, _FEWEST = 4, 4096
"""Positions that H is taken from: so many for each weight of an output channel, and at least so many in all."""
_BLOCK = 128


@dataclass(frozen=True)
class LearnedWeight:
    """One layer's new parameters."""

    values: NDArray[np.int8]  # [O, I, ...]
    scales: NDArray[np.float32]  # [O]
    bias: NDArray[np.float32]  # [O]


def learn_rounding(
    reference: onnx.ModelProto,
    deployable: onnx.ModelProto,
    images: Sequence[NDArray[np.float32]],
    means: Mapping[str, NDArray[np.floating]],
    *,
    levels: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, LearnedWeight]:
    """New weights of every convolution and of the classifier, by node name.

    Args:
        reference: the fp32 graph with the same weights.
        deployable: the same with Q/DQ; its activation scales are kept.
        images: [3, H, W] each, preprocessed; more than ``IMAGES`` take much memory.
        means: channel means [C] of every weighted node's input in the fp32 graph.
        levels: largest integer of a node's weights, where it is not ``LEVELS``.
    """
    import torch

    exact, quantized = Network(reference), Network(deployable)
    found: list[Values] = [{quantized.input: chunk} for chunk in _chunks(images)]
    restored = {node.output[0] for node in deployable.graph.node if node.op_type == "DequantizeLinear"}
    chosen = {node.name for node in quantized.nodes if node.op in WEIGHTED_OPS and node.inputs[1] in restored}
    layers = {node.name: node for node in exact.nodes if node.name in chosen}
    learned: dict[str, LearnedWeight] = {}
    with torch.no_grad():
        for index, node in enumerate(quantized.nodes):
            if node.name in chosen:
                layer = layers[node.name]
                weight, bias = (exact.constants[name] for name in layer.inputs[1:3])
                mean = torch.from_numpy(means[layer.inputs[0]]).float()
                largest = (levels or {}).get(node.name, LEVELS)
                inputs = [values[node.inputs[0]] for values in found]
                new = _learn_groups(layer, (output_first(layer, weight), bias), inputs, mean, largest)
                learned[node.name] = new
                step = torch.from_numpy(new.scales).reshape(-1, *[1] * (weight.ndim - 1))
                rounded = torch.from_numpy(new.values) * step
                quantized.constants[node.inputs[1]] = output_first(node, rounded)
                quantized.constants[node.inputs[2]] = torch.from_numpy(new.bias)
                if progress:
                    progress(len(learned), len(layers))
            for values in found:
                values[node.output] = quantized.step(node, values)
                for name in quantized.finished(index):
                    del values[name]
    return learned


def _learn_groups(
    layer: Node, parameters: tuple[Tensor, Tensor], inputs: list[Tensor], mean: Tensor, levels: int
) -> LearnedWeight:
    """New weights of ``layer`` from its ``inputs``: each group of a convolution reads channels of its own."""
    parts = []
    groups = groups_of(layer)
    each, read = len(parameters[1]) // groups, len(mean) // groups
    for group in range(groups):
        rows, columns = (slice(group * size, (group + 1) * size) for size in (each, read))
        weight, bias = (values[rows] for values in parameters)
        taken = inputs if groups == 1 else [chunk[:, columns] for chunk in inputs]
        covariance, _ = _moments(layer, taken)
        taps = mean[columns].repeat_interleave(weight[0].numel() // read)
        parts.append(_learn(weight, bias, covariance, taps, levels))
    return LearnedWeight(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.bias for part in parts]),
    )


def first_moments(
    model: onnx.ModelProto, images: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    """Covariance [K, K] and below it the mean [K] of what the first convolution multiplies with K weights.

    ``model`` is an fp32 graph, ``images`` are [C, H, W] each, preprocessed. None where not one ungrouped convolution
    alone reads the images.
    """
    import torch

    layer = sole_convolution(model)
    if layer is None:
        return None
    covariance, mean = _moments(layer, _chunks(images))
    found: NDArray[np.float32] = torch.cat([covariance, mean[None]]).numpy()
    return found


def learn_first(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    moments: NDArray[np.float32],
    *,
    step: float,
    levels: int = LEVELS,
) -> LearnedWeight:
    """The first convolution alone, from ``first_moments``; its input has only the errors of its own quantizer.

    ``weight`` is [O, I, ...], ``step`` that of the input's quantizer, ``levels`` the largest integer of the weights.
    """
    import torch

    covariance = torch.from_numpy(moments[:-1].copy())
    covariance.diagonal().add_(step**2 / 12)
    parameters = [torch.from_numpy(np.array(array, np.float32)) for array in (weight, bias, moments[-1])]
    return _learn(parameters[0], parameters[1], covariance, parameters[2], levels)


def _chunks(images: Sequence[NDArray[np.float32]]) -> list[Tensor]:
    import torch

    return [torch.from_numpy(np.stack(images[i : i + CHUNK])) for i in range(0, len(images), CHUNK)]


def _columns(layer: Node, x: Tensor) -> Tensor:
    """[K, positions]: what each position of the output multiplies with the weights of one output channel."""
    from torch.nn.functional import unfold

    from calibration.execution.attributes import padded

    if layer.op == "Gemm":
        return x.t()
    attributes = layer.attributes
    kernel, one = tuple(attributes["kernel_shape"]), (1, 1)
    rows, columns = attributes.get("strides", one)
    x, padding = padded(attributes, x, kernel)
    if kernel == one and not any(padding):
        return x[:, :, ::rows, ::columns].transpose(0, 1).flatten(1)
    taken = unfold(x, kernel, tuple(attributes.get("dilations", one)), tuple(padding), (rows, columns))
    return taken.transpose(0, 1).flatten(1)


def _moments(layer: Node, chunks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Covariance H [K, K] and mean [K] of the layer's input in all chunks."""
    import torch

    total, sums, count = torch.zeros(()), torch.zeros(()), 0
    for number, chunk in enumerate(chunks):
        x = _columns(layer, chunk)
        step = max(1, x.shape[1] * len(chunks) // max(_POSITIONS * x.shape[0], _FEWEST))
        x = x[:, number % step :: step]
        total = total.addmm_(x, x.t()) if number else x @ x.t()
        sums = sums + x.sum(1)
        count += x.shape[1]
    return total / count - torch.outer(sums, sums) / count**2, sums / count


def _learn(weight: Tensor, bias: Tensor, covariance: Tensor, mean: Tensor, levels: int) -> LearnedWeight:
    import torch

    rows = weight.flatten(1)
    diagonal = covariance.diagonal().clamp_min(0)
    covariance.diagonal().copy_(diagonal + DAMPING * (float(diagonal.mean()) or 1.0))
    scales = torch.from_numpy(channel_scales(weight.numpy(), levels))
    values = round_with_feedback(rows, covariance, scales, levels)
    moved = (rows - values * scales[:, None]) @ mean
    integers = values.to(torch.int8).reshape(weight.shape)
    return LearnedWeight(integers.numpy(), scales.numpy(), (bias + moved).numpy())


def _cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """The Cholesky factor of ``matrix``, with as much more damping as that needs.

    Where the inputs hardly change, as on images of one colour, only rounding errors are left of their covariance.
    """
    import torch

    size = float(matrix.diagonal().abs().mean()) or 1.0
    for damping in (0.0, 1e-4, 1e-2, 1.0, 100.0):
        damped = matrix + damping * size * torch.eye(len(matrix), dtype=matrix.dtype) if damping else matrix
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(damped, upper=upper)
        if not failed and torch.isfinite(factor).all():
            return factor
    return torch.eye(len(matrix), dtype=matrix.dtype)  # nothing to learn from: rounding to the nearest


def round_with_feedback(weight: Tensor, covariance: Tensor, scales: Tensor, levels: int = LEVELS) -> Tensor:
    """Integers [O, K] up to ``levels``, as floats, of ``weight`` [O, K] for inputs with ``covariance`` [K, K]."""
    import torch

    feedback = _cholesky(torch.cholesky_inverse(_cholesky(covariance)), upper=True)
    rest, rounded = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], _BLOCK):
        stop = min(start + _BLOCK, weight.shape[1])
        block, local = rest[:, start:stop], feedback[start:stop, start:stop]
        errors = torch.empty_like(block)
        for column in range(stop - start):
            exact = block[:, column]
            nearest = (exact / scales).round().clamp(-levels, levels)
            rounded[:, start + column] = nearest
            errors[:, column] = (exact - nearest * scales) / local[column, column]
            block[:, column + 1 :] -= errors[:, column, None] * local[column, column + 1 :]
        rest[:, stop:] -= errors @ feedback[start:stop, stop:]
    return rounded

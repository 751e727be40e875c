"""Sensitivity of the logits to every channel and weight, from gradients on calibration images.

For v of independent standard normal numbers, E[(v . dlogits/dx)^2] = |dlogits/dx|^2 (a random projection of the
Jacobian), so one backward pass per image estimates, for every element x at once, the squared error of the logits that
an error of one in x causes. Errors of activations are taken as independent, so they add over positions:

    G_c   = mean over images of  sum over positions of  (v . dlogits/dx_c)^2              activations
    F_ok  = mean over images of  sum over taps of  (dL/dW_ok - mean_k dL/db_o)^2          weights

The weights' gradient is that of an input without its mean, because bias correction removes the mean's part of a
weight's error.

G is also split by the magnitude of x, because the logits often care less for a pixel that is already large: in the stem
of ResNet-50 the largest third of a channel's range has half of the mean squared gradient, the middle 1.5 times of it.
Clipping costs less there than the mean says, and rounding in the middle more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.network import Network, Node, groups_of, input_channels, output_first, weighted_nodes
from calibration.operators import operator
from calibration.statistics.channels import ChannelHistograms, position_stride

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

IMAGES = 16
"""Images whose gradients are averaged; twice as many were no better on images that calibration had not seen."""

BUCKETS = 49
"""Eight of equal width for each octave of |x| / amax of the channel from 1/64 to 1, and the first for all below."""

_SHIFT = 20
"""Leaves the exponent and three bits of the mantissa of a float32."""
_FIRST = (127 - 6 << 3) - 1
_PRIOR = 0.002
"""Share of a tensor's mean weight in a bucket that is assumed to have the mean sensitivity."""


@dataclass
class Sensitivity:
    """Squared error of the logits, summed over classes, per squared error at each place."""

    activations: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Tensor to [C]; for an error in every position of the channel."""
    magnitudes: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Tensor to [BUCKETS]; factors of the above by the size of the value, where they are not all 1."""
    weights: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Weighted node to [O, I]; summed over the taps of the kernel."""
    logits: float = 0.0
    """Mean over images of the squared norm of the logits."""


def measure_sensitivity(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Iterable[NDArray[np.float32]],
    channels: Mapping[str, ChannelHistograms],
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Sensitivity of the folded fp32 ``model`` to ``tensors`` and to all weights, over single ``images`` [3, H, W].

    ``channels`` holds the histograms of every weighted node's input, for their means and ranges.

    Raises:
        CalibrationError: no images, or an operation that has no gradient here.
    """
    import torch

    network = Network(undecided(model))
    weighted = weighted_nodes(model, channels)
    parameters = [network.constants[name].requires_grad_() for node in weighted for name in node.inputs[1:3]]
    generator = torch.Generator().manual_seed(seed)
    wanted, result, count = set(tensors), Sensitivity(), 0
    observers = {name: MagnitudeObserver(channels[name].amax) for name in tensors}
    read = {node.name: _means_read(network, node, channels[node.inputs[0]].means) for node in weighted}
    for image in images:
        x = torch.from_numpy(image[None]).requires_grad_(network.input in wanted)
        held = {network.input: x} if network.input in wanted else {}

        def hold(node: Node, value: Tensor, held: dict[str, Tensor] = held) -> None:
            if node.output in wanted:
                held[node.output] = value

        logits = _joined(network.run_all(x, hold))
        direction = torch.randn(logits.shape, generator=generator)
        gradients = torch.autograd.grad(
            (logits * direction).sum(), [*held.values(), *parameters], materialize_grads=True
        )
        for name, gradient in zip(held, gradients, strict=False):
            norms = torch.linalg.vector_norm(gradient[0].reshape(gradient.shape[1], -1), dim=1)
            by_channel = norms.double().square().numpy()
            result.activations[name] = result.activations.get(name, 0.0) + by_channel
            observers[name].update(held[name], gradient)
        for index, node in enumerate(weighted):
            weight, bias = gradients[len(held) + 2 * index : len(held) + 2 * index + 2]
            means = read[node.name]
            by_tap = output_first(node, weight).reshape(*means.shape, -1)
            squares = torch.addcmul(by_tap, bias[:, None, None], means[:, :, None], value=-1).square_()
            squares = squares.sum(2) if squares.shape[2] > 1 else squares[:, :, 0]
            result.weights[node.name] = result.weights.get(node.name, 0.0) + squares.numpy()
        result.logits += float(logits.detach().double().square().sum())
        count += 1
        if progress:
            progress(count)
    if not count:
        raise CalibrationError("there are no calibration images to take gradients of: pass at least one")
    result.activations = {name: total / count for name, total in result.activations.items()}
    result.weights = {name: total / count for name, total in result.weights.items()}
    result.logits /= count
    result.magnitudes = {name: observer.factors() for name, observer in observers.items()}
    return result


def _means_read(network: Network, node: Node, means: NDArray[np.float64]) -> Tensor:
    """The mean [O, I] of the channel that each weight of ``node`` multiplies."""
    import torch

    groups = groups_of(node)
    rows = len(network.constants[node.inputs[2]])
    return torch.from_numpy(means).float()[
        torch.from_numpy(input_channels(rows, len(means) // groups, groups))
    ]


def undecided(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without a softmax, sigmoid or choice at its outputs: they hide what an error does to the logits."""
    import onnx

    makers = {node.output[0]: node for node in model.graph.node}
    ends = []
    for entry in model.graph.output:
        name = entry.name
        while name in makers and operator(makers[name].op_type).decides:
            name = makers[name].input[0]
        ends.append(name)
    if ends == [entry.name for entry in model.graph.output]:
        return model
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.output[:]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(ends))
    return found


def _joined(outputs: tuple[Tensor, ...]) -> Tensor:
    """One vector [1, K] of all ``outputs``, each relative to its own norm; a single one as it is."""
    import torch

    if len(outputs) == 1:
        return outputs[0]
    rows = [output.flatten(1) for output in outputs]
    return torch.cat([row / row.detach().norm().clamp_min(1e-30) for row in rows], 1)


def bucket_of(ratio: NDArray[np.floating]) -> NDArray[np.int32]:
    """Bucket of each |x| / amax; numbers above 1 fall into the last."""
    bits = np.ascontiguousarray(ratio, np.float32).view(np.int32) >> _SHIFT
    return np.asarray(np.clip(bits - _FIRST, 0, BUCKETS - 1))


class MagnitudeObserver:
    """Sums up squared gradients of one tensor by the size of the value, relative to its channel's amax [C]."""

    def __init__(self, amax: NDArray[np.float64]) -> None:
        self._amax = np.maximum(amax, 1e-30)
        self._counts = np.zeros((len(amax), BUCKETS))
        self._squares = np.zeros((len(amax), BUCKETS))

    def update(self, values: Tensor, gradients: Tensor) -> None:
        """Add one image's ``values`` and ``gradients``, both [1, C, ...]."""
        import torch

        channels = values.shape[1]
        rows, slopes = values[0].detach().reshape(channels, -1), gradients[0].reshape(channels, -1)
        step = position_stride(rows.shape[1])
        ratio = (rows[:, ::step].abs() / torch.from_numpy(self._amax).float()[:, None]).numpy()
        index = (bucket_of(ratio) + (np.arange(channels, dtype=np.int32) * BUCKETS)[:, None]).reshape(-1)
        squares = slopes[:, ::step].square().numpy().reshape(-1)
        size = channels * BUCKETS
        self._counts += np.bincount(index, minlength=size).reshape(channels, -1)
        self._squares += np.bincount(index, squares, minlength=size).reshape(channels, -1)

    def factors(self) -> NDArray[np.float64]:
        """[BUCKETS] mean squared gradient in each bucket over that of the whole channel, pooled over channels.

        A channel is weighted by the square of its range times its squared gradients: by the errors that it can make.
        The first bucket holds the zeros of a ReLU, exact on every grid, so it takes the factor of the second.
        """
        seen = np.maximum(self._counts.sum(axis=1, keepdims=True), 1)
        mean = self._squares.sum(axis=1, keepdims=True) / seen
        size = np.square(self._amax)[:, None]
        found, expected = (size * self._squares).sum(axis=0), (size * mean * self._counts).sum(axis=0)
        prior = _PRIOR * expected.sum() / BUCKETS
        if prior == 0.0:
            return np.ones(BUCKETS)
        factors = (found + prior) / (expected + prior)
        factors[0] = factors[1]
        return np.asarray(factors)

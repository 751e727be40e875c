"""How much the logits move when a channel or a weight does, from gradients on calibration images.

For v of independent standard normal numbers, E[(v . dlogits/dx)^2] = |dlogits/dx|^2 (a random projection of the
Jacobian), so one backward pass per image estimates, for every element x at once, the squared error of the logits that
an error of one in x causes. Errors of activations are taken as independent, so they add over positions:

    G_c   = mean over images of  sum over positions of  (v . dlogits/dx_c)^2              activations
    F_ok  = mean over images of  sum over taps of  (dL/dW_ok - mean_k dL/db_o)^2          weights

The weights' gradient is that of an input without its mean, because bias correction removes the mean's part of a
weight's error. G is also split by the magnitude of x: see ``magnitudes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.network import WEIGHTED_OPS, Network, Node, output_first
from calibration.statistics.channels import ChannelHistograms
from calibration.statistics.magnitudes import MagnitudeObserver

if TYPE_CHECKING:
    import onnx
    import torch

IMAGES = 16
"""Images whose gradients are averaged; twice as many were no better on images that calibration had not seen."""


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

    network = Network(model)
    weighted = [node for node in network.nodes if node.op in WEIGHTED_OPS]
    parameters = [network.constants[name].requires_grad_() for node in weighted for name in node.inputs[1:3]]
    generator = torch.Generator().manual_seed(seed)
    wanted, result, count = set(tensors), Sensitivity(), 0
    observers = {name: MagnitudeObserver(channels[name].amax) for name in tensors}
    for image in images:
        x = torch.from_numpy(image[None]).requires_grad_(network.input in wanted)
        held = {network.input: x} if network.input in wanted else {}

        def hold(node: Node, value: torch.Tensor, held: dict[str, torch.Tensor] = held) -> None:
            if node.output in wanted:
                held[node.output] = value

        logits = network.run(x, hold)
        direction = torch.randn(logits.shape, generator=generator)
        gradients = torch.autograd.grad((logits * direction).sum(), [*held.values(), *parameters])
        for name, gradient in zip(held, gradients, strict=False):
            by_channel = gradient[0].double().square().reshape(gradient.shape[1], -1).sum(1).numpy()
            result.activations[name] = result.activations.get(name, 0.0) + by_channel
            observers[name].update(held[name], gradient)
        for index, node in enumerate(weighted):
            weight, bias = gradients[len(held) + 2 * index : len(held) + 2 * index + 2]
            mean = torch.from_numpy(channels[node.inputs[0]].means).float()
            by_tap = output_first(node, weight).reshape(len(bias), len(mean), -1)
            squares = (by_tap - bias[:, None, None] * mean[None, :, None]).square().sum(2).double().numpy()
            result.weights[node.name] = result.weights.get(node.name, 0.0) + squares
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

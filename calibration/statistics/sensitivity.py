"""Sensitivity of the logits to every channel and weight, from gradients on calibration images.

For v of independent standard normal numbers, E[(v . dlogits/dx)^2] = |dlogits/dx|^2 (a random projection of the
Jacobian), so one backward pass per image estimates, for every element x at once, the squared error of the logits that
an error of one in x causes. Errors of activations are taken as independent, so they add over positions:

    G_c   = mean over images of  sum over positions of  (v . dlogits/dx_c)^2              activations
    F_ok  = mean over images of  sum over taps of  (dL/dW_ok - mean_k dL/db_o)^2          weights

The weights' gradient is that of an input without its mean, because bias correction removes the mean's part of a
weight's error. It is a product of what autograd gives, the gradient at the layer's output, with the input that each tap
of the kernel reads, image by image, because gradients of different images must be squared before they are added:

    dL/dW_okt - mean_k dL/db_o = sum over positions p of  dL/dy_op (x_k,p+t - mean_k)

G is also split by the magnitude of x, because the logits often care less for a pixel that is already large: in the stem
of ResNet-50 the largest third of a channel's range has half of the mean squared gradient, the middle 1.5 times of it.
Clipping costs less there than the mean says, and rounding in the middle more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.network import Network, Node, groups_of, output_first, weighted_nodes
from calibration.operators import operator
from calibration.statistics.channels import ChannelHistograms, position_stride

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

IMAGES = 16
"""Images whose gradients are averaged: twice as many were no better on images that calibration had not seen, and half
as many were 4 % worse on ResNet-18 and -50 (relative RMS)."""
BATCH = 4
"""Images that get their random numbers at once."""
LARGE = 128 * 128
"""Pixels of an image that is run alone: the activations of several take a gigabyte."""
MOST_WAITING = 64
"""Gradients that are kept until they are added: enough for the next forward pass."""

BUCKETS = 49
"""Eight of equal width for each octave of |x| / amax of the channel from 1/64 to 1, and the first for all below."""

_LEAST = 1e-30
"""Squared norm of the logits of a network that answers zeros, as one whose head was never trained may."""
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
    weights: dict[str, NDArray[np.floating]] = field(default_factory=dict)
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
    size = _at_once(model)
    generator, remaining, count = torch.Generator().manual_seed(seed), iter(images), 0
    with _half_of_the_threads() as pool:
        sums = _Sums(network, weighted_nodes(model, channels), tensors, channels, pool)
        while batch := list(islice(remaining, BATCH)):
            projection = None
            for start in range(0, len(batch), size):
                x = torch.from_numpy(np.stack(batch[start : start + size])).requires_grad_()
                sums.watch(network.input, x)
                logits = _joined(network.run_all(x, lambda node, value: sums.watch(node.output, value)))
                if projection is None:
                    projection = torch.randn((len(batch), *logits.shape[1:]), generator=generator)
                torch.autograd.backward((logits * projection[start : start + size]).sum())
                sums.found.logits += float(logits.detach().double().square().sum())
            count += len(batch)
            if progress:
                progress(count)
        if not count:
            raise CalibrationError("there are no calibration images to take gradients of: pass at least one")
        return sums.means(count)


def _at_once(model: onnx.ModelProto) -> int:
    """Number of images in one pass: one large image, or a batch of small ones."""
    sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    return 1 if math.prod(sides) >= LARGE else BATCH


@contextmanager
def _half_of_the_threads() -> Iterator[ThreadPoolExecutor]:
    """A thread beside the caller's; PyTorch gives half of its threads to the work of each."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(half := max(1, threads // 2))
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(half,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


class _Sums:
    """Sums over images, to which the thread of ``pool`` adds gradients in the order of the backward pass."""

    def __init__(
        self,
        network: Network,
        weighted: Sequence[Node],
        tensors: Sequence[str],
        channels: Mapping[str, ChannelHistograms],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._network, self._channels, self._pool = network, channels, pool
        self._adding: deque[Future[None]] = deque()
        self._weighted = {node.output: node for node in weighted}
        self._observers = {name: MagnitudeObserver(channels[name].amax) for name in tensors}
        self._values: dict[str, Tensor] = {}
        self.found = Sensitivity(
            {name: np.zeros(len(channels[name].means)) for name in tensors},
            weights={
                node.name: np.zeros(
                    output_first(node, network.constants[node.inputs[1]]).shape[:2], np.float32
                )
                for node in weighted
            },
        )

    def watch(self, name: str, value: Tensor) -> None:
        """Take the tensor ``name`` of the forward pass, and its gradient when there is one."""
        if name in self._channels:
            self._values[name] = value.detach()
        if (name in self._observers or name in self._weighted) and value.requires_grad:
            value.register_hook(partial(self._take, name))  # type: ignore[no-untyped-call]

    def _take(self, name: str, slope: Tensor) -> None:
        """Let the thread add ``slope``; where too many wait, wait for the first."""
        if len(self._adding) >= MOST_WAITING:
            self._adding.popleft().result()
        if name in self._observers:
            self._adding.append(self._pool.submit(self._add_activation, name, self._values[name], slope))
        if name in self._weighted:
            node = self._weighted[name]
            self._adding.append(
                self._pool.submit(self._add_weight, node, self._values[node.inputs[0]], slope)
            )

    def _add_activation(self, name: str, values: Tensor, slope: Tensor) -> None:
        import torch

        by_image = slope.reshape(*slope.shape[:2], -1).square().sum(2, dtype=torch.float64)
        self.found.activations[name] += by_image.sum(0).numpy()
        self._observers[name].update(values, slope)

    def _add_weight(self, node: Node, values: Tensor, slope: Tensor) -> None:
        import torch

        means = torch.from_numpy(self._channels[node.inputs[0]].means).float()
        kernel = self._network.constants[node.inputs[1]].shape[2:]
        squares = _weight_squares(node, values, slope, means, kernel)
        self.found.weights[node.name] += squares.numpy()

    def means(self, count: int) -> Sensitivity:
        """The sums, divided by the number of images."""
        while self._adding:
            self._adding.popleft().result()
        return Sensitivity(
            {name: total / count for name, total in self.found.activations.items()},
            {name: observer.factors() for name, observer in self._observers.items()},
            {name: total / count for name, total in self.found.weights.items()},
            max(self.found.logits / count, _LEAST),
        )


def _weight_squares(node: Node, x: Tensor, slope: Tensor, means: Tensor, kernel: Sequence[int]) -> Tensor:
    """[O, I] squared gradients of the node's weights, summed over taps and images.

    ``x`` is the node's input, whose channels have ``means``; ``slope`` is the gradient at its output.
    """
    import torch

    groups = groups_of(node)
    by_group = slope.reshape(len(slope), groups, slope.shape[1] // groups, -1)
    total = torch.zeros(())
    for seen in _seen_by_taps(node, x, means, kernel):
        centred = seen.reshape(len(x), groups, len(means) // groups, -1)
        for rows, columns in zip(by_group, centred, strict=True):
            total = (rows @ columns.mT).square_() + total
    factor = float(node.attributes.get("alpha", 1.0))
    return total.flatten(0, 1) * factor**2


def _seen_by_taps(node: Node, x: Tensor, means: Tensor, kernel: Sequence[int]) -> Iterator[Tensor]:
    """[N, C, positions] what each tap of the kernel multiplies less its mean [C], for all positions of the output."""
    from torch.nn.functional import pad

    from calibration.execution.attributes import last_first, per_axis, windows

    if node.op == "Gemm":
        yield ((x.t() if node.attributes.get("transA") else x) - means)[:, :, None]
        return
    before, after = windows(node.attributes, x.shape[2:], kernel)
    x = pad(x, last_first(before, after)) if any((*before, *after)) else x
    x = x - means.reshape(-1, *[1] * len(kernel))
    strides, dilations = (per_axis(node.attributes, name, len(kernel)) for name in ("strides", "dilations"))
    axes = list(zip(x.shape[2:], kernel, strides, dilations, strict=True))
    counts = [(length - (taps - 1) * dilation - 1) // stride + 1 for length, taps, stride, dilation in axes]
    for place in product(*map(range, kernel)):
        cut = tuple(
            slice(tap * dilation, tap * dilation + (n - 1) * stride + 1, stride)
            for tap, n, (_, _, stride, dilation) in zip(place, counts, axes, strict=True)
        )
        yield x[(slice(None), slice(None), *cut)].flatten(2)


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
    """One vector [N, K] of all ``outputs``, each relative to its own norm; a single one as it is."""
    import torch

    if len(outputs) == 1:
        return outputs[0]
    rows = [output.flatten(1) for output in outputs]
    return torch.cat([row / row.detach().norm(dim=1, keepdim=True).clamp_min(1e-30) for row in rows], 1)


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
        """Add the ``values`` and ``gradients`` of some images, both [N, C, ...]."""
        import torch

        step = position_stride(values[0, 0].numel())
        rows, slopes = (
            each.detach().reshape(*each.shape[:2], -1)[:, :, ::step].transpose(0, 1).flatten(1)
            for each in (values, gradients)
        )
        channels = len(rows)
        ratio = (rows.abs() / torch.from_numpy(self._amax).float()[:, None]).numpy()
        index = (bucket_of(ratio) + (np.arange(channels, dtype=np.int32) * BUCKETS)[:, None]).reshape(-1)
        squares = slopes.square().numpy().reshape(-1)
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

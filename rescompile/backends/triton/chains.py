"""Bottlenecks as chains: one launch from a block's 3x3 to the next block's first 1x1, wherever the kernel fits.

A chain rounds between its convolutions exactly as they do when each is a launch of its own, so no answer changes.
"""

from __future__ import annotations

import numpy as np
import torch

from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.chain import chain_fits
from rescompile.backends.triton.graph import Array
from rescompile.backends.triton.groups import conv_of
from rescompile.backends.triton.lower import Network
from rescompile.backends.triton.steps import Chain, Convolution, Step, reads


def with_chains(network: Network) -> Network:
    """``network`` with every bottleneck that fits in one step, together with the next one's first convolution."""
    steps = list(network.steps)
    finder = _Finder(steps, network.weights)
    made: list[Step] = []
    covered: set[str] = set()
    for step in steps:
        if step.name in covered:
            continue
        if isinstance(step, Convolution) and (chain := finder.chain_from(step)) is not None:
            # the shortcut may be made between the two convolutions: the chain runs where its last one did
            finder.pending[chain.conv3] = chain
            covered |= {name for name in (chain.conv1,) if name is not None}
            continue
        made.append(finder.pending.get(step.name, step))
    return Network(tuple(made), network.weights)


class _Finder:
    def __init__(self, steps: list[Step], weights: dict[str, Array]) -> None:
        self.weights = weights
        self.pending: dict[str, Chain] = {}
        """Chains by the step in whose place they run."""
        self.users: dict[str, list[Step]] = {}
        for step in steps:
            for name in reads(step):
                self.users.setdefault(name, []).append(step)

    def chain_from(self, conv2: Convolution) -> Chain | None:
        """The chain that begins with this 3x3, if there is one."""
        conv3 = self._last_of(conv2)
        if conv3 is None or conv3.residual is None:
            return None
        width, dtype = len(self._weight(conv2)), torch.from_numpy(self._weight(conv2)).dtype
        if not chain_fits(width, dtype):
            return None
        after = self.users.get(conv3.output, [])
        conv1 = next(
            (step for step in (self._first(user, dtype) for user in after) if step is not None), None
        )
        if conv1 is not None and not chain_fits(width, dtype, len(self._weight(conv1))):
            conv1 = None
        layers = [conv2, conv3] if conv1 is None else [conv2, conv3, conv1]
        return Chain(
            name=conv2.name.rpartition(".")[0] or conv2.name,
            input=conv2.input,
            conv2=conv2.name,
            conv3=conv3.name,
            conv1=None if conv1 is None else conv1.name,
            stride=conv2.window.stride,
            residual=conv3.residual,
            residual_scale=conv3.residual_scale,
            output=conv3.output,
            following=None if conv1 is None else conv1.output,
            without_relu=tuple(layer.name for layer in layers if not layer.relu),
            zero_sums=conv2.zero_sums,
        )

    def _last_of(self, conv2: Convolution) -> Convolution | None:
        """The bottleneck's last convolution, if ``conv2`` is its 3x3."""
        k, _, _, c = self._weight(conv2).shape
        windows = {Conv(3, 3, 1, 1), Conv(3, 3, 2, 1)}
        users = self.users.get(conv2.output, [])
        if conv_of(conv2.window) not in windows or k != c or not self._plain(conv2) or len(users) != 1:
            return None
        conv3 = users[0]
        if not isinstance(conv3, Convolution) or conv3.input != conv2.output:
            return None
        return conv3 if conv_of(conv3.window).pointwise else None

    def _first(self, step: Step, dtype: torch.dtype) -> Convolution | None:
        """``step``, if it is the first convolution of a bottleneck that is a chain itself."""
        if not isinstance(step, Convolution) or not conv_of(step.window).pointwise or not self._plain(step):
            return None
        after = self.users.get(step.output, [])
        second = after[0] if len(after) == 1 else None
        if not isinstance(second, Convolution) or self._last_of(second) is None:
            return None
        return step if chain_fits(len(self._weight(second)), dtype) else None

    def _plain(self, step: Convolution) -> bool:
        """Whether it adds nothing and ends as a layer of a chain may: in a ReLU, or in INT8 saturated."""
        return step.residual is None and (step.relu or self._weight(step).dtype == np.int8)

    def _weight(self, step: Convolution) -> Array:
        return self.weights[f"{step.name}.weight"]

"""Bottlenecks as chains: one launch from a block's 3x3 to the next block's first 1x1, wherever the kernel fits.

A chain rounds between its convolutions exactly as they do when each is a launch of its own, so no answer changes.
"""

from __future__ import annotations

import numpy as np
import torch

from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.chain import chain_fits
from rescompile.backends.triton.lowering.graph import Array
from rescompile.backends.triton.lowering.network import Network
from rescompile.backends.triton.steps import Chain, Convolution, Step, reads

_SPATIAL = (Conv(3, 3, 1, 1), Conv(3, 3, 2, 1))


def with_chains(network: Network) -> Network:
    """``network`` in which one step runs a bottleneck and the next one's first convolution, wherever they fit."""
    finder = _Finder(network)
    made: list[Step] = []
    chains: dict[str, Chain] = {}
    """By the step in whose place they run."""
    for step in network.steps:
        if any(step.name == chain.conv1 for chain in chains.values()):
            continue
        chain = finder.chain_from(step) if isinstance(step, Convolution) else None
        if chain is None:
            made.append(chains.get(step.name, step))
        else:
            # a shortcut may be made between the two convolutions: the chain runs where its last one did
            chains[chain.conv3] = chain
    return Network(tuple(made), network.weights)


class _Finder:
    def __init__(self, network: Network) -> None:
        self.weights = network.weights
        self.readers: dict[str, list[Step]] = {name: [] for step in network.steps for name in reads(step)}
        for step in network.steps:
            for name in reads(step):
                self.readers[name].append(step)

    def chain_from(self, conv2: Convolution) -> Chain | None:
        """The chain that begins with this 3x3, if there is one."""
        conv3 = self._last_of(conv2)
        if conv3 is None or conv3.residual is None:
            return None
        width, dtype = len(self._weight(conv2)), torch.from_numpy(self._weight(conv2)).dtype
        if not chain_fits(width, dtype):
            return None
        found = (self._first(step, dtype) for step in self.readers.get(conv3.output, []))
        conv1 = next((step for step in found if step is not None), None)
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
        if conv2.window.conv() not in _SPATIAL or k != c or not self._plain(conv2):
            return None
        conv3 = self._only_reader(conv2)
        if conv3 is None or conv3.input != conv2.output or not conv3.window.conv().pointwise:
            return None
        return conv3

    def _first(self, step: Step, dtype: torch.dtype) -> Convolution | None:
        """``step``, if it is the first convolution of a bottleneck that is a chain itself."""
        if not isinstance(step, Convolution) or not step.window.conv().pointwise or not self._plain(step):
            return None
        second = self._only_reader(step)
        if second is None or self._last_of(second) is None:
            return None
        return step if chain_fits(len(self._weight(second)), dtype) else None

    def _only_reader(self, step: Convolution) -> Convolution | None:
        """The convolution that alone reads what ``step`` makes, if there is one."""
        match self.readers.get(step.output, []):
            case [Convolution() as reader]:
                return reader
        return None

    def _plain(self, step: Convolution) -> bool:
        """Whether ``step`` adds no residual, and ends as a layer of a chain may: in a ReLU, or saturated to INT8."""
        return step.residual is None and (step.relu or self._weight(step).dtype == np.int8)

    def _weight(self, step: Convolution) -> Array:
        return self.weights[f"{step.name}.weight"]

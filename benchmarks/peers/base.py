"""The interface of a contender in a race."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.networks import Network

Call = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Images float32 [N, 3, H, W] to logits [N, classes]."""

FP32_ALLOWED = 1e-3
HALF_ALLOWED = 2e-2
INT8_ALLOWED = 0.25
"""Largest relative RMS of logits to fp32's with which a contender still computes the same network.

Accuracy is not judged here: networks with random weights amplify each rounding.
"""


class Missing(Exception):
    """A contender that cannot race on this machine; the message is the reason."""


class Entrant(Protocol):
    """One contender."""

    name: str
    ours: bool
    allowed: float

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Make it ready.

        Raises:
            Missing: a package is not installed, or cannot take the network.
            Failed: it could not be built.
        """
        ...

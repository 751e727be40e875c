"""How the tests of other frameworks' files measure the network that a reader made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.onnxruntime import reference_session
from rescompile.sources.network import SourceNetwork


def run(network: SourceNetwork, images: NDArray[Any]) -> NDArray[Any]:
    """The network's answer to images [N, C, H, W]."""
    session = reference_session(network.graph.SerializeToString(), optimize=True)
    return session(np.ascontiguousarray(images, np.float32))


def top1(network: SourceNetwork, data: Path, mean: NDArray[Any] | float = 0.0) -> float:
    """Percent of the first 1,000 CIFAR-10 test images that it classifies right; pixels are 0 to 255 less ``mean``."""
    with np.load(data / "cifar10/test.npz") as test:
        images, labels = test["images"][:1000].astype(np.float32) - mean, test["labels"][:1000]
    return float((run(network, images.transpose(0, 3, 1, 2)).argmax(1) == labels).mean() * 100)

"""How the tests of other frameworks' files measure the network that a reader made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.onnxruntime import reference_session
from rescompile.sources.network import SourceNetwork


def run(network: SourceNetwork, images: NDArray[Any]) -> NDArray[Any]:
    """The network's answer to images [N, C, H, W]."""
    session = reference_session(network.graph.SerializeToString(), optimize=True)
    return session(np.ascontiguousarray(images, np.float32))

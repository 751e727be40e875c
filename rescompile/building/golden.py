"""The golden answers of an engine: a few inputs and what the deployable graph makes of them.

The inputs are crops of the built-in photographs, whatever the network is for: no user's image leaves the
machine inside an engine. The answers are ONNX Runtime's, optimizations off, which executes the graph's own
semantics.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.images.builtin import golden_images
from calibration.preprocess import Preprocess, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.config import InputFormat
from rescompile.manifest import Precision
from rescompile.runtime.golden import golden_bytes

COUNT = 4

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}
"""Largest relative RMS between an engine's logits and the golden ones.

An INT8 engine may round a sum the other way than the reference does, wherever it computes in another order; such
a step of one then spreads. Measured figures are in ``docs/accuracy-notes.md``.
"""


def make_golden(deployable: bytes, preprocess: Preprocess, input_format: InputFormat) -> bytes:
    """Run the deployable graph on the golden images; the contents of ``golden.npz``."""
    images = golden_images(preprocess, count=COUNT)
    fed: NDArray[np.generic] = images if input_format == "uint8-nhwc" else normalize(images, preprocess)
    session = reference_session(deployable, optimize=False)
    # one at a time: the batch sizes that an engine takes do not bind its reference
    logits = np.concatenate([session(fed[index : index + 1]) for index in range(len(fed))])
    return golden_bytes(fed, logits)

"""Checks rewrites by execution: the new graph must compute what the old one does, for any batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.errors import UnknownOperation
from calibration.network import Network
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.fidelity import TOLERANCE, relative_error, rounding_noise, tolerance_beside
from rescompile.errors import GraphError

EXECUTOR_TOLERANCE = 1e-3
"""Between PyTorch and ONNX Runtime, which sum in another order."""


Answers = Mapping[str, NDArray[np.float32]]
"""Outputs by name for two random images, which are the same for every graph of one input."""


def trial_answers(graph: onnx.ModelProto) -> Answers:
    """What the fp32 ``graph``, executed as it is written, answers to two random images."""
    return reference_session(graph, optimize=False).tensors(_images(graph))


def check_rewrite(
    before: onnx.ModelProto, after: onnx.ModelProto, done: str, expected: Answers | None = None
) -> onnx.ModelProto:
    """``after``, which must compute what ``before`` does, two images at once and one by one.

    Both are fp32 graphs; ``done`` says in the message what was rewritten. ``expected`` are the ``trial_answers`` of
    ``before``, if they are known.

    Raises:
        GraphError: an output differs.
    """
    if before is after:
        return after
    images = _images(before)
    # one session after the other, as the graphs are written: each holds the weights once more, optimized ones thrice
    expected = trial_answers(before) if expected is None else expected
    session = reference_session(after, optimize=False)
    together, single = session.tensors(images), [session.tensors(image[None]) for image in images]
    for name, values in expected.items():
        alone = np.concatenate([each[name] for each in single])
        error, allowed = max(relative_error(values, each) for each in (together[name], alone)), TOLERANCE
        if not error <= allowed:
            allowed = tolerance_beside(rounding_noise(before, images))
        if not error <= allowed:
            raise GraphError(
                f"{done}, and '{name}' changed by {error:.2g} (relative RMS on random images, at most {allowed:.2g}): "
                "please report this network; until it is fixed, build it with --effort fast"
            )
    return after


def executor_problem(graph: onnx.ModelProto, expected: Answers | None = None) -> str | None:
    """Why gradients and single layers of the fp32 ``graph`` cannot be computed; None where they can.

    ``expected`` are its ``trial_answers``, if they are known.
    """
    import torch

    image = _images(graph)[:1]
    try:
        with torch.inference_mode():
            found = [each.numpy() for each in Network(graph).run_all(torch.from_numpy(image))]
    except UnknownOperation as error:
        return error.problem
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"PyTorch does not execute this network ({str(error).splitlines()[0]})"
    expected = trial_answers(graph) if expected is None else expected
    for (name, values), ours in zip(expected.items(), found, strict=True):
        if not relative_error(values[:1], ours) <= EXECUTOR_TOLERANCE:
            return f"PyTorch and ONNX Runtime compute different values of '{name}'"
    return None


def _images(graph: onnx.ModelProto) -> NDArray[np.float32]:
    """Two random images for ``graph``."""
    shape = [side.dim_value or 32 for side in graph.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)

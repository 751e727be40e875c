"""Checks the image sizes that an engine will take, before anything is built on the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from calibration.preprocess import Preprocess, size_words
from rescompile.building.fidelity import MOST_TOLERANCE, Answers, check_at_sizes
from rescompile.config import ModelConfig
from rescompile.errors import UsageError


def check_sizes(
    graph: onnx.ModelProto,
    config: ModelConfig,
    preprocess: Preprocess,
    references: Callable[[], Sequence[Answers]],
    limit: float | None = None,
    *,
    tolerance: float = MOST_TOLERANCE,
) -> None:
    """Refuse a range of sizes that the network does not take, or that lacks its own size; a single size passes.

    Args:
        graph: folded fp32 graph.
        config: has the sizes.
        preprocess: of the network's own size.
        references: makes what ``fidelity.check_at_sizes`` compares the graph with.
        limit: as in ``fidelity.random_images``.
        tolerance: largest relative RMS of the difference.

    Raises:
        UsageError: the sizes do not fit the preprocessing.
        GraphError: the network does not take them.
    """
    sizes = config.sizes
    if sizes is None:
        return
    if not sizes.holds(preprocess.size):
        raise UsageError(
            f"--dynamic-size {sizes} leaves out {size_words(preprocess.crop)}, the size that the engine is calibrated "
            "and tuned for; widen it, or pass another --size"
        )
    if preprocess.mean_image:
        raise UsageError(
            "a mean image has one size; leave --dynamic-size out, or pass a mean of each channel (--mean)"
        )
    check_at_sizes(graph, sizes, references(), limit, tolerance)

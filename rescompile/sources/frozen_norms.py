"""Epsilon of frozen batch norms, which a detector's checkpoint does not hold.

torchvision's ``FrozenBatchNorm2d`` adds 1e-5 to the variance. Its detectors that were published before it did so get 0
when their weights are loaded (``torchvision.models.detection._utils.overwrite_eps``), and so do detectors that are
trained further from them. Both kinds of file look alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rescompile.errors import CheckpointError
from rescompile.files import sha256_of

USUAL = 1e-5
_PUBLISHED = {
    "258fb6c6": 0.0,  # fasterrcnn_resnet50_fpn, COCO_V1
    "bf2d0c1e": 0.0,  # maskrcnn_resnet50_fpn, COCO_V1
    "fc266e95": 0.0,  # keypointrcnn_resnet50_fpn, COCO_V1
    "9f466800": USUAL,  # keypointrcnn_resnet50_fpn, COCO_LEGACY
    "eeacb38b": 0.0,  # retinanet_resnet50_fpn, COCO_V1
}
"""Epsilon of torchvision's detectors with frozen norms, by the beginning of the file's SHA-256, as in its name."""
_LARGEST = 1e-4
"""Largest relative change of a channel that does not matter."""


def norm_epsilon(backbone: Mapping[str, Tensor], path: Path) -> float:
    """Epsilon of the batch norms of ``backbone``, a part of the checkpoint ``path``.

    Norms that count batches are not frozen.

    Raises:
        CheckpointError: the norms are frozen, and 0 would give other answers than 1e-5.
    """
    variances = [
        tensor.double()
        for name, tensor in backbone.items()
        if name.endswith("running_var") and name.replace("running_var", "num_batches_tracked") not in backbone
    ]
    if not variances:
        return USUAL
    published = _PUBLISHED.get(sha256_of(path)[:8])
    if published is not None:
        return published
    least = min(float(variance.min()) for variance in variances)
    change = torch.tensor(1 + USUAL / max(least, 1e-30), dtype=torch.float64).sqrt().item() - 1
    if change <= _LARGEST:
        return USUAL
    raise CheckpointError(
        f"{path} has frozen batch norms, whose epsilon it does not hold: 1e-5, or 0 in detectors trained further from "
        f"torchvision's first COCO weights, which changes a channel by {change:.1%}. The live network knows it: pass "
        "detector.backbone.body to rescompile.build, or a function that returns it as --model module:FILE:FUNCTION"
    )

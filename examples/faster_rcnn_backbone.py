"""Puts an engine under torchvision's Faster R-CNN or Mask R-CNN in place of its backbone, and compares the detections.

    python examples/faster_rcnn_backbone.py --precision fp32
    python examples/faster_rcnn_backbone.py --images photographs --body resnet50.pth --precision int8

It needs the extra ``torchvision`` and downloads nothing: weights are random with a fixed seed, but ``--body`` reads
those of a ResNet-50 as torchvision publishes them. A detection is found again if one of the same class has all corners
within half a pixel, its score within 0.01, and its mask within 0.01 of the probability on average. INT8 moves boxes by
more than that, so those of the same class that overlap are counted too (intersection over union of at least 0.5), and
how far their scores differ.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import rescompile
from calibration.preprocess import IMAGENET, Preprocess

DETECTORS = {"faster-rcnn": "fasterrcnn_resnet50_fpn", "mask-rcnn": "maskrcnn_resnet50_fpn"}
STAGES = ("layer1", "layer2", "layer3", "layer4")
PIXELS, SCORE, MASK = 0.5, 0.01, 0.01
OVERLAP = 0.5
CALIBRATION_IMAGES = 32

Detections = list[dict[str, Tensor]]


class EngineBody(nn.Module):
    """The stages of a ResNet, answered by an engine; the names are those that torchvision's FPN reads."""

    def __init__(self, engine: rescompile.Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.engine(images.numpy())
        return {str(index): torch.from_numpy(found[stage]) for index, stage in enumerate(STAGES)}


def detector_of(name: str, size: int, body: Path | None) -> nn.Module:
    """A detector whose random heads prefer some boxes and classes clearly, as trained ones do, over ``body``."""
    from torchvision.models import detection

    torch.manual_seed(0)
    detector: nn.Module = getattr(detection, DETECTORS[name])(
        weights=None, weights_backbone=None, num_classes=5, min_size=size, max_size=size, box_score_thresh=0.3
    )
    for head in (detector.rpn.head.cls_logits, detector.roi_heads.box_predictor.cls_score):
        nn.init.normal_(head.weight, std=0.5)
    if body is not None:
        weights = torch.load(body, map_location="cpu", weights_only=True)
        detector.backbone.body.load_state_dict(weights, strict=False)  # without the classifier
    return detector.eval()


def images_of(folder: Path | None, size: int, count: int) -> Tensor:
    """The first photographs of ``folder``, or random images: [N, 3, size, size] between 0 and 1."""
    if folder is None:
        return torch.rand(count, 3, size, size)
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".jpeg", ".png"))[:count]
    photographs = [np.asarray(Image.open(path).convert("RGB").resize((size, size))) for path in paths]
    return torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2) / 255


def with_engine(detector: nn.Module, images: Tensor, others: Tensor | None, precision: str) -> float:
    """Replace the detector's body by its engine, which is calibrated on ``others`` and judged on ``images``.

    Returns:
        The relative RMS of the engine's features.
    """
    size = images.shape[-1]
    preprocess = Preprocess(
        resize=size, crop=size, interpolation="bilinear", mean=IMAGENET.mean, std=IMAGENET.std, color="RGB"
    )
    with tempfile.TemporaryDirectory() as folder:
        report = rescompile.build(
            detector.backbone.body,
            outputs=STAGES,
            precision=precision,
            calibration=None if others is None else normalized(others),
            effort=None if others is None else "fast",
            validation=normalized(images),
            preprocess=preprocess,
            output=Path(folder) / "backbone",
        )
        detector.backbone.body = EngineBody(rescompile.load(report.engine_directory))
    return report.relative_rms


def detections(detector: nn.Module, images: Tensor) -> Detections:
    with torch.inference_mode():
        found: Detections = detector(list(images))
    return found


def found_again(expected: dict[str, Tensor], found: dict[str, Tensor]) -> int:
    """How many ``expected`` detections of an image are among those ``found``."""
    same = expected["labels"][:, None] == found["labels"]
    same &= torch.cdist(expected["boxes"], found["boxes"], p=torch.inf) < PIXELS
    same &= (expected["scores"][:, None] - found["scores"]).abs() < SCORE
    if "masks" in expected:
        ours, theirs = (each["masks"].flatten(1) for each in (expected, found))
        same &= torch.cdist(ours, theirs, p=1) < MASK * ours.shape[1]
    return int(same.any(1).sum())


def intersection_over_union(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of all pairs of boxes (left, top, right, bottom): [N, 4] and [M, 4] to [N, M]."""
    top_left = torch.maximum(ours[:, None, :2], theirs[:, :2])
    bottom_right = torch.minimum(ours[:, None, 2:], theirs[:, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(2)
    areas, others = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (ours, theirs))
    return shared / (areas[:, None] + others - shared)


def score_differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[float]:
    """The score of each ``expected`` detection less that of the one of its class that overlaps most, if any does."""
    overlaps = intersection_over_union(expected["boxes"], found["boxes"])
    overlaps *= expected["labels"][:, None] == found["labels"]
    if not overlaps.numel():
        return []
    best = overlaps.max(1)
    differences: list[float] = (expected["scores"] - found["scores"][best.indices])[
        best.values >= OVERLAP
    ].tolist()
    return differences


def normalized(images: Tensor) -> NDArray[np.float32]:
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    return ((images - mean) / std).numpy().astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", choices=tuple(DETECTORS), default="faster-rcnn")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument("--size", type=int, default=128, help="side of the images, a multiple of 32")
    parser.add_argument("--images", type=Path, help="a folder of photographs; random images without")
    parser.add_argument("--count", type=int, default=4, help="images to compare on")
    parser.add_argument("--body", type=Path, help="weights of torchvision's ResNet-50; random ones without")
    arguments = parser.parse_args()
    size, count = arguments.size, arguments.count
    detector = detector_of(arguments.detector, size, arguments.body)
    int8 = arguments.precision == "int8"
    every = images_of(arguments.images, size, count + CALIBRATION_IMAGES * int8)
    images, others = every[:count], every[count:]  # calibration does not see what is compared
    expected = detections(detector, images)
    error = with_engine(detector, images, others if int8 else None, arguments.precision)
    found = detections(detector, images)
    pairs = list(zip(expected, found, strict=True))
    of = sum(len(one["boxes"]) for one in expected)
    differences = np.abs([each for pair in pairs for each in score_differences(*pair)])
    print(f"relative RMS of the features: {error:.4f}")
    print(f"{sum(found_again(*pair) for pair in pairs)} of {of} detections are found again")
    print(f"{len(differences)} of {of} overlap with one of the same class")
    if len(differences):
        print(f"their scores differ by {differences.mean():.4f} on average, {differences.max():.4f} at most")


if __name__ == "__main__":
    main()

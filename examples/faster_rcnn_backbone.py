"""Puts an engine under torchvision's Faster R-CNN in place of its backbone, and compares the detections.

    python examples/faster_rcnn_backbone.py --precision fp32

Weights are random with a fixed seed, so nothing is downloaded; it needs the extra ``torchvision``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import rescompile
from calibration.preprocess import IMAGENET, Preprocess

SIDE = 128
STAGES = ("layer1", "layer2", "layer3", "layer4")


class EngineBody(nn.Module):
    """The stages of a ResNet, answered by an engine; the names are those that torchvision's FPN reads."""

    def __init__(self, engine: rescompile.Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.engine(images.numpy())
        return {str(index): torch.from_numpy(found[stage]) for index, stage in enumerate(STAGES)}


def detections(detector: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [found["boxes"] for found in detector(list(images))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    detector = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=SIDE, max_size=SIDE, box_score_thresh=0.0
    ).eval()
    images = torch.rand(4, 3, SIDE, SIDE)
    expected = detections(detector, images)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    normalized = ((images - mean) / std).numpy().astype(np.float32)
    preprocess = Preprocess(
        resize=SIDE, crop=SIDE, interpolation="bilinear", mean=IMAGENET.mean, std=IMAGENET.std, color="RGB"
    )
    with tempfile.TemporaryDirectory() as folder:
        rescompile.build(
            detector.backbone.body,
            outputs=STAGES,
            precision=arguments.precision,
            calibration=normalized if arguments.precision == "int8" else None,
            validation=normalized,
            preprocess=preprocess,
            output=Path(folder) / "backbone",
        )
        engine = rescompile.load(Path(folder) / "backbone")
        detector.backbone.body = EngineBody(engine)
        found = detections(detector, images)
    # random weights give scores that are nearly alike, so the order of boxes says nothing
    nearest = torch.cat(
        [torch.cdist(a, b, p=torch.inf).amin(1) for a, b in zip(expected, found, strict=True)]
    )
    print(f"{int((nearest < 0.5).sum())} of {len(nearest)} boxes are found again within half a pixel")


if __name__ == "__main__":
    main()

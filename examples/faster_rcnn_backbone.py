"""Puts an engine under torchvision's Faster R-CNN or Mask R-CNN in place of its backbone, and compares the detections.

    python examples/faster_rcnn_backbone.py --precision fp32
    python examples/faster_rcnn_backbone.py --images photographs --body resnet50.pth --train 300 --precision int8

It needs the extra ``torchvision`` and downloads nothing: weights are random with a fixed seed, but ``--body`` reads
those of a ResNet-50 as torchvision publishes them, and ``--train`` teaches the rest of the detector to find shapes that
are painted over the images. A detection is found again if one of the same class has all corners within half a pixel,
its score within 0.01, and its mask within 0.01 of the probability on average. INT8 moves boxes by more than that, so
those of the same class that overlap are counted too (intersection over union of at least 0.5), and how far their scores
differ.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import box_iou

import rescompile
from calibration.preprocess import IMAGENET, Preprocess

DETECTORS = {
    "faster-rcnn": detection.fasterrcnn_resnet50_fpn,
    "mask-rcnn": detection.maskrcnn_resnet50_fpn,
}
STAGES = ("layer1", "layer2", "layer3", "layer4")
PIXELS, SCORE, MASK = 0.5, 0.01, 0.01
OVERLAP = 0.5
PROPOSALS = 300
"""Boxes of a level that the heads see: small images need no more."""
BATCH, BOXES = 4, 64
"""Images of a training step, and boxes of each."""

Detections = list[dict[str, Tensor]]


class EngineBody(nn.Module):
    """The stages of a ResNet, answered by an engine; the names are those that torchvision's FPN reads."""

    def __init__(self, engine: rescompile.Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found = self.engine(images.numpy())
        return {str(index): torch.from_numpy(found[stage]) for index, stage in enumerate(STAGES)}


def detector_of(name: str, size: int, body: Path | None, *, confident: float) -> nn.Module:
    """A detector with random heads, and the weights in ``body`` under them; its body is not trained."""
    torch.manual_seed(0)
    detector: nn.Module = DETECTORS[name](
        weights=None, weights_backbone=None, num_classes=5, min_size=size, max_size=size, box_score_thresh=confident,
        rpn_pre_nms_top_n_train=PROPOSALS, rpn_pre_nms_top_n_test=PROPOSALS,
        box_batch_size_per_image=BOXES,
    )  # fmt: skip
    if body is not None:
        weights = torch.load(body, map_location="cpu", weights_only=True)
        detector.backbone.body.load_state_dict(weights, strict=False)  # without the classifier
    return detector.eval()


def prefer_clearly(detector: nn.Module) -> None:
    """Let random heads prefer some boxes and classes clearly, as trained ones do."""
    for head in (detector.rpn.head.cls_logits, detector.roi_heads.box_predictor.cls_score):
        nn.init.normal_(head.weight, std=0.5)


def train(detector: nn.Module, images: Tensor, steps: int) -> None:
    """Teach all of ``detector`` but its body to find the shapes that ``painted`` adds to the images."""
    detector.backbone.body.requires_grad_(False)
    random = np.random.default_rng(0)
    learned = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-4, total_steps=steps)
    for step in range(steps):
        chosen = images[random.integers(len(images), size=BATCH)]
        pictures, targets = zip(*(painted(each, random) for each in chosen), strict=True)
        detector.train()
        detector.backbone.body.eval()  # its batch norms keep their statistics
        loss = sum(detector(list(pictures), list(targets)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 10.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step}: loss {float(loss):.3f}", flush=True)
    detector.eval()


def painted(image: Tensor, random: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """``image`` [3, H, W] with one to three shapes over it, and what a detector is to find there."""
    size = image.shape[-1]
    picture = Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy())
    boxes, labels, masks = [], [], []
    for _ in range(random.integers(1, 4)):
        side = int(random.integers(size // 6, size // 3))
        left, top = (int(each) for each in random.integers(0, size - side, size=2))
        right, bottom, kind = left + side, top + side, int(random.integers(1, 5))
        mask = Image.new("L", picture.size)
        drawn = ImageDraw.Draw(mask)
        middle, centre = (left + right) / 2, (top + bottom) / 2
        if kind == 1:
            drawn.ellipse((left, top, right, bottom), fill=255)
        elif kind == 2:
            drawn.rectangle((left, top, right, bottom), fill=255)
        elif kind == 3:
            drawn.polygon([(left, bottom), (right, bottom), (middle, top)], fill=255)
        else:
            drawn.polygon([(left, centre), (middle, top), (right, centre), (middle, bottom)], fill=255)
        picture.paste(tuple(random.integers(256, size=3).tolist()), mask=mask)
        boxes.append([left, top, right, bottom])
        labels.append(kind)
        masks.append(np.asarray(mask) > 0)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    return pixels, {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "masks": torch.from_numpy(np.stack(masks)).to(torch.uint8),
    }


def images_of(folder: Path | None, size: int, count: int) -> Tensor:
    """The first photographs of ``folder``, or random images: [N, 3, size, size] between 0 and 1."""
    if folder is None:
        return torch.rand(count, 3, size, size)
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".jpeg", ".png"))[:count]
    photographs = [np.asarray(Image.open(path).convert("RGB").resize((size, size))) for path in paths]
    return torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2) / 255


def detections(detector: nn.Module, images: Tensor) -> Detections:
    with torch.inference_mode():
        return [found for image in images for found in detector([image])]


def found_again(expected: dict[str, Tensor], found: dict[str, Tensor]) -> int:
    """How many ``expected`` detections of an image are among those ``found``."""
    same = expected["labels"][:, None] == found["labels"]
    same &= torch.cdist(expected["boxes"], found["boxes"], p=torch.inf) < PIXELS
    same &= (expected["scores"][:, None] - found["scores"]).abs() < SCORE
    if "masks" in expected:
        ours, theirs = (each["masks"].flatten(1) for each in (expected, found))
        same &= torch.cdist(ours, theirs, p=1) < MASK * ours.shape[1]
    return int(same.any(1).sum())


def score_differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[float]:
    """The score of each ``expected`` detection less that of the one of its class that overlaps most, if any does."""
    if not len(expected["boxes"]) or not len(found["boxes"]):
        return []
    overlaps = box_iou(expected["boxes"], found["boxes"])
    overlaps *= expected["labels"][:, None] == found["labels"]
    best = overlaps.max(1)
    differences = (expected["scores"] - found["scores"][best.indices]).abs()
    return list(differences[best.values >= OVERLAP].tolist())


def normalized(images: Tensor) -> np.ndarray:
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
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", help="train the heads first")
    arguments = parser.parse_args()
    size, count = arguments.size, arguments.count
    detector = detector_of(
        arguments.detector, size, arguments.body, confident=0.5 if arguments.train else 0.3
    )
    # the first images are compared; others, if there are any, are for training and calibration
    every = images_of(arguments.images, size, count + max(count, 100))
    images, others = every[:count], every[count:] if len(every) > count else every
    if arguments.train:
        train(detector, others, arguments.train)
        random = np.random.default_rng(1)
        images, others = (
            torch.stack([painted(each, random)[0] for each in part]) for part in (images, others)
        )
    else:
        prefer_clearly(detector)
    expected = detections(detector, images)
    preprocess = Preprocess(
        resize=size, crop=size, interpolation="bilinear", mean=IMAGENET.mean, std=IMAGENET.std, color="RGB"
    )
    with tempfile.TemporaryDirectory() as folder:
        report = rescompile.build(
            detector.backbone.body,
            outputs=STAGES,
            precision=arguments.precision,
            calibration=normalized(others) if arguments.precision == "int8" else None,
            validation=normalized(images),
            preprocess=preprocess,
            output=Path(folder) / "backbone",
        )
        detector.backbone.body = EngineBody(rescompile.load(Path(folder) / "backbone"))
        found = detections(detector, images)
    pairs = list(zip(expected, found, strict=True))
    of = sum(len(one["boxes"]) for one in expected)
    differences = [each for pair in pairs for each in score_differences(*pair)]
    print(f"relative RMS of the features: {report.relative_rms:.4f}")
    print(f"{sum(found_again(*pair) for pair in pairs)} of {of} detections are found again")
    print(f"{len(differences)} of {of} overlap with one of the same class")
    if differences:
        print(f"their scores differ by {np.mean(differences):.4f} on average, {max(differences):.4f} at most")


if __name__ == "__main__":
    main()

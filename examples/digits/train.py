"""Train a small bottleneck ResNet on scikit-learn's digits and write everything that rescompile needs.

    python examples/digits/train.py --output quickstart

The script writes into ``quickstart``: ``digits.safetensors`` (the checkpoint), ``calibration.npz`` (images that the
network was trained on), ``validation/0`` to ``validation/9`` (held-out digits as PNG files, one folder per class) and
``digit.png``. It takes about a minute on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from calibration.preprocess import CIFAR, normalize
from rescompile.models.registry import create, find

MODEL = "resnet20-cifar-bottleneck"
SIDE = 16
"""Side of the images. Digits have 8 x 8 pixels; 16 is large enough, and trains four times as fast as CIFAR's 32."""
PREPROCESS = msgspec.structs.replace(CIFAR, resize=SIDE, crop=SIDE)
HELD_OUT = 400


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits as RGB images uint8 [N, 16, 16, 3], in a fixed random order, and their labels."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    grey = (digits.images[order] * (255 / 16)).round().astype(np.uint8)
    large = [
        Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB") for image in grey
    ]
    return np.stack([np.asarray(image) for image in large]), digits.target[order]


def train(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = create(find(depth=None, name=MODEL), 10).train()
    x, y = torch.from_numpy(normalize(images, PREPROCESS)), torch.from_numpy(labels)
    steps = epochs * (len(x) // 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    for _ in track(range(epochs), description="training"):
        for batch in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    with torch.inference_mode():
        return float(
            (model(torch.from_numpy(normalize(images, PREPROCESS))).argmax(1).numpy() == labels).mean()
        )


def write_validation(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{index:04d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder to write into")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training digits")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_images()
    known, held_out = slice(HELD_OUT, None), slice(0, HELD_OUT)
    model = train(images[known], labels[known], arguments.epochs)
    found = accuracy(model, images[held_out], labels[held_out])
    print(f"held-out accuracy in PyTorch: {found:.2%} of {HELD_OUT} digits")
    save_file(model.state_dict(), folder / "digits.safetensors")
    np.savez_compressed(folder / "calibration.npz", images=images[known][:256], labels=labels[known][:256])
    write_validation(folder / "validation", images[held_out], labels[held_out])
    Image.fromarray(images[0]).save(folder / "digit.png")
    print(f"wrote {folder}/digits.safetensors, calibration.npz, validation/ and digit.png (a {labels[0]})")


if __name__ == "__main__":
    main()

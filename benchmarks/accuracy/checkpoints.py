"""The checkpoints that RESCOMPILE_DATA may have, with the images that belong to them."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """One trained network."""

    model: str
    """The name that ``--model`` takes."""
    file: Path
    calibration: Path
    validation: Path
    calibration_images: int

    def unpacked(self, folder: Path) -> Path:
        """The file itself, or what is packed in it, in ``folder``."""
        if self.file.suffix != ".xz":
            return self.file
        plain = folder / self.file.stem
        if not plain.is_file():
            plain.write_bytes(lzma.decompress(self.file.read_bytes()))
        return plain


def checkpoints(data: Path) -> list[Checkpoint]:
    """The checkpoints whose files are there."""
    weights, imagenet, cifar = data / "weights", data / "imagenet", data / "cifar10"
    photographs = (imagenet / "calibration", imagenet / "validation", 200)
    small = (cifar / "train_10k.npz", cifar / "test.npz", 512)
    known = [
        Checkpoint("resnet50", weights / "resnet50-pqf.pth.xz", *photographs),
        Checkpoint("resnet18", weights / "resnet18-pqf.pth.xz", *photographs),
        Checkpoint("resnet20-cifar", weights / "resnet20-12fca82f.th", *small),
        Checkpoint("resnet56-cifar", weights / "resnet56-4bfd9763.th", *small),
    ]
    return [entry for entry in known if entry.file.is_file() and entry.validation.exists()]

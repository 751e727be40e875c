"""The files of ``RESCOMPILE_DATA/zoo``, and what the program that trained each network does to its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEAN_IMAGE = "cifar10/train_mean.npy"
IMAGENET = ("0.485,0.456,0.406", "0.229,0.224,0.225")
CIFAR = (".4914,.4822,.4465", ".2023,.1994,.2010")
UNIT = "0.00392157"
"""1/255: the network takes pixels of 0 to 255."""
PIXELS = ("0,0,0", UNIT)
CENTERED = (MEAN_IMAGE, UNIT)


@dataclass(frozen=True)
class File:
    """One network."""

    path: str
    """Below ``zoo``."""
    normalization: tuple[str, str | None] | None
    """``--mean`` (a file lies below the data folder) and ``--std``; None where the file itself brings them."""
    measured: float | None
    """Percent of the first 2,000 test images, in the network's own program; None where it was not trained on them."""
    crop: bool = False
    """Whether only ``--crop`` gives the size."""
    classes: bool = True
    """Whether it tells CIFAR-10's classes apart."""
    on_all: bool = False
    """Whether ``measured`` is of all 10,000 images."""

    @property
    def name(self) -> str:
        """Its folder and name."""
        return self.path

    def words(self, data: Path) -> list[str]:
        """The options of ``rescompile build`` for it."""
        found = ["--onnx" if self.path.endswith(".onnx") else "--weights", str(data / "zoo" / self.path)]
        if self.normalization is not None:
            mean, std = self.normalization
            found += ["--mean", str(data / mean) if mean == MEAN_IMAGE else mean]
            found += ["--std", std] if std is not None else []
        return found + ["--crop", "32"] * self.crop


FILES = (
    File("torch/plainnet20-bias.pth", (MEAN_IMAGE, None), 91.3),
    File("torch/plainnet56-bias.pth", (MEAN_IMAGE, None), 89.2),
    File("torch/resnet20-bias.pth", (MEAN_IMAGE, None), 90.5),
    File("torch/resnet56-bias.pth", (MEAN_IMAGE, None), 92.7),
    File("torch/resnet20-stride-last.pth", IMAGENET, 91.0),
    File("torch/resnet32-pad-end.pth", CIFAR, 92.2),
    File("torch/wrn16-1-preactivation.pth.tar", ("0,0,0", "1,1,1"), 85.3),
    File("torch/resnet20-distiller.pth.tar", (".5,.5,.5", ".5,.5,.5"), 91.9),
    File("caffe/plain20.caffemodel", CENTERED, 90.0, crop=True),
    File("caffe/resnet20.caffemodel", CENTERED, 92.0, crop=True),
    File("keras/resnet8-mlperf-tiny.h5", PIXELS, 86.8),
    File("keras/resnet8.keras", PIXELS, 86.8),
    File("keras/resnet8.weights.h5", PIXELS, 86.8),
    File("keras/resnet20-binary.h5", PIXELS, None, classes=False),
    File("onnx/resnet20-opset9.onnx", IMAGENET, 91.7, on_all=True),
    File("onnx/resnet2b-two-classifiers.onnx", CIFAR, 67.6, on_all=True),
    File("onnx/depthwise-relu6.onnx", None, 85.1),
    File("paddle/resnet20-untrained.pdparams", None, None),
    File("tensorflow/saved_model", PIXELS, 86.8),
)
"""In the order of the table; a SavedModel is refused, and converted as the refusal says."""

"""The exported networks: classifiers, backbones with several outputs, segmenters, other channels, other heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn
from torchvision.models import get_model, segmentation
from torchvision.models._utils import IntermediateLayerGetter

CLASSES = 10
SEED_IMAGES = 8
"""Images whose statistics the batch norms hold."""
BRANCH_SCALE = 0.5


class Stages(nn.Module):
    """The answers of a ResNet's four stages."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.stages = IntermediateLayerGetter(
            network, {f"layer{number}": str(number) for number in range(1, 5)}
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of all stages, finest first."""
        return tuple(self.stages(images).values())


class Mask(nn.Module):
    """The classes of all pixels by a segmenter, without its auxiliary head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes, H, W]."""
        mask: Tensor = self.network(images)["out"]
        return mask


class TwoHeads(nn.Module):
    """A ResNet-18 with two classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = get_model("resnet18", weights=None)
        self.body.fc = nn.Identity()
        self.first, self.second = nn.Linear(512, CLASSES), nn.Linear(512, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both classifiers."""
        features = self.body(images)
        return self.first(features), self.second(features)


def _resnet18(channels: int) -> nn.Module:
    network = get_model("resnet18", weights=None, num_classes=CLASSES)
    network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return network


def _with_hidden_layer() -> nn.Module:
    network = get_model("resnet18", weights=None)
    network.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    return network


@dataclass(frozen=True)
class Export:
    """A network and the images that it takes."""

    make: Callable[[], nn.Module]
    size: int = 64
    channels: int = 3


def _torchvision(name: str, size: int = 64, **options: object) -> Export:
    return Export(partial(get_model, name, weights=None, num_classes=CLASSES, **options), size)


def _segmenter(name: str) -> Export:
    make = partial(getattr(segmentation, name), weights=None, weights_backbone=None, num_classes=5)
    return Export(lambda: Mask(make()))


_TIMM = (
    "resnet50d", "resnet50c", "resnet26t", "seresnet50", "legacy_seresnet18", "ecaresnet26t", "gcresnet33ts",
    "skresnet18", "resnest14d", "res2net50_26w_4s", "resnext26ts", "resnetaa50", "resnetblur18", "resnetv2_50",
    "resnetv2_50d", "nf_resnet26", "dla34", "hrnet_w18_small", "rexnet_100", "mobilenetv3_small_100",
)  # fmt: skip
EXPORTS: dict[str, Export] = {
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "resnext50": _torchvision("resnext50_32x4d"),
    "wide_resnet50": _torchvision("wide_resnet50_2"),
    "dilated resnet50": _torchvision("resnet50", replace_stride_with_dilation=[False, True, True]),
    "four stages of resnet50": Export(lambda: Stages(get_model("resnet50", weights=None))),
    "grey resnet18": Export(partial(_resnet18, 1), channels=1),
    "resnet18 of four channels": Export(partial(_resnet18, 4), channels=4),
    "resnet18 with two heads": Export(TwoHeads),
    "resnet18 with a hidden layer": Export(_with_hidden_layer),
    "vgg11": _torchvision("vgg11", 224),
    "vgg11_bn": _torchvision("vgg11_bn", 224),
    "densenet121": _torchvision("densenet121"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "regnet_x_400mf": _torchvision("regnet_x_400mf"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "fcn_resnet50": _segmenter("fcn_resnet50"),
    "deeplabv3_resnet50": _segmenter("deeplabv3_resnet50"),
    **{
        f"timm:{name}": Export(partial(timm.create_model, name, pretrained=False, num_classes=CLASSES))
        for name in _TIMM
    },
}


def made(export: Export) -> nn.Module:
    """The network in eval mode, with random weights of a fixed seed and the statistics of random images."""
    torch.manual_seed(0)
    network = export.make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of all images seen
            if not module.weight.any():
                nn.init.constant_(module.weight, BRANCH_SCALE)
    network.train()
    network.apply(lambda module: module.eval() if isinstance(module, nn.Dropout) else None)
    with torch.no_grad():
        network(torch.randn(SEED_IMAGES, export.channels, export.size, export.size))
    return network.eval()

"""Forty networks of torchvision and timm as fp32 ONNX files, with random weights that see real images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TORCHVISION = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "wide_resnet50_2", "densenet121", "mobilenet_v2", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x1_0",
)  # fmt: skip
TIMM = (
    "resnet10t", "resnet14t", "resnet18d", "resnet26", "resnet26d", "resnet26t", "resnet34d", "resnet50c",
    "resnet50d", "resnet50t", "resnet101d", "resnetrs50", "seresnet18", "seresnet50", "legacy_seresnet18",
    "ecaresnet26t", "skresnet18", "resnest14d", "res2net50_26w_4s", "resnext26ts", "resnext50d_32x4d",
    "resnetv2_50", "resnetv2_50d", "resnetblur18", "dla34", "hrnet_w18_small", "rexnet_100",
)  # fmt: skip
NETWORKS = (*(f"torchvision:{name}" for name in TORCHVISION), *(f"timm:{name}" for name in TIMM))
CLASSES = 10
DIRECTIONS = 8
"""Number of the features' principal directions that the classifier reads."""
BRANCH_SCALE = 0.25
INPUT = "input"


def make(name: str, calibration: NDArray[np.float32]) -> nn.Module:
    """The network ``package:name`` in eval mode, with random weights of a fixed seed.

    Its batch norms hold the statistics of the ``calibration`` images [N, 3, H, W], and its classifier reads the
    directions in which their features differ, so that the answers depend on the images as a trained network's do. The
    last batch norms of residual blocks, which both packages can start at zero, get a small scale, so that branches take
    part, and errors do not grow from block to block as they do in networks of random weights alone.
    """
    torch.manual_seed(0)
    package, _, model = name.partition(":")
    if package == "torchvision":
        import torchvision

        starts_at_zero = {"zero_init_residual": True} if "resne" in model else {}
        network: nn.Module = torchvision.models.get_model(
            model, weights=None, num_classes=CLASSES, **starts_at_zero
        )
    else:
        import timm

        network = timm.create_model(model, pretrained=False, num_classes=CLASSES)
    images = torch.from_numpy(calibration)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics of all images seen
                if not module.weight.any():
                    module.weight.fill_(BRANCH_SCALE)
        network.train()
        network.apply(_without_dropout)
        for part in images.split(25):
            network(part)
        network.eval()
        _fit_head(network, images)
    return network


def export(network: nn.Module, size: int, path: Path) -> None:
    """Write ``network`` to ``path``, for images of ``size`` pixels and any batch size."""
    torch.onnx.export(
        network, (torch.zeros(1, 3, size, size),), path, dynamo=False, opset_version=17, verbose=False,
        input_names=[INPUT], output_names=["logits"], dynamic_axes={INPUT: {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip


def _without_dropout(module: nn.Module) -> None:
    if isinstance(module, (nn.Dropout, nn.Dropout2d)):
        module.eval()


def _fit_head(network: nn.Module, images: Tensor) -> None:
    """Make the last layer read the directions in which the features of ``images`` differ most, around their mean."""
    heads = [
        module
        for module in network.modules()
        if (isinstance(module, nn.Linear) and module.out_features == CLASSES)
        or (isinstance(module, nn.Conv2d) and module.out_channels == CLASSES)
    ]
    head, seen = heads[-1], list[Tensor]()
    handle = head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(1)))
    network(images)
    handle.remove()
    centred = seen[0] - seen[0].mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:DIRECTIONS]
    weight = torch.randn(CLASSES, len(axes)) @ axes
    weight /= (centred @ weight.T).std(0).unsqueeze(1)
    head.weight.copy_(weight.view_as(head.weight))
    assert head.bias is not None
    head.bias.copy_(-(weight @ seen[0].mean(0)))


def answers(run: Callable[[NDArray[Any]], NDArray[Any]], images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [N, classes] of ``images``, asked one at a time, which every tool's file takes."""
    return np.concatenate([run(image[None]) for image in images])

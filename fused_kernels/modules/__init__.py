"""Drop-in modules: residual blocks, stages, stems and whole networks whose state_dict is torchvision's."""

from fused_kernels.modules.block import FusedBasicBlock, FusedBlock, FusedBottleneck
from fused_kernels.modules.resnet import (
    FusedResNet,
    cifar_resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from fused_kernels.modules.stage import FusedStage
from fused_kernels.modules.stem import FusedStem

__all__ = [
    "FusedBasicBlock",
    "FusedBlock",
    "FusedBottleneck",
    "FusedResNet",
    "FusedStage",
    "FusedStem",
    "cifar_resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]

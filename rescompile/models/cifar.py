"""CIFAR ResNets: a 3x3 stem without max pool and three stages of 16, 32 and 64 channels.

basic blocks:        n per stage, 6n+2 layers, shortcut option A (or B)
bottleneck blocks:   n per stage, 9n+2 layers, outputs of 64, 128 and 256 channels, option B
wide ResNets:        n pre-activation blocks per stage, 6n+4 layers, 16, 16k, 32k and 64k channels, option B
"""

from __future__ import annotations

from rescompile.models.form import BlockForm
from rescompile.models.resnet import BasicBlock, Bottleneck, ResNet, Stem

CIFAR_STEM = Stem(kernel=3, stride=1, maxpool=False)
CIFAR_WIDTHS = (16, 32, 64)


def cifar_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    blocks_per_stage: int,
    form: BlockForm = BlockForm(shortcut="A"),  # noqa: B008 - it is frozen
    *,
    classes: int = 10,
    widen: int = 1,
) -> ResNet:
    """A CIFAR network for images [N, 3, 32, 32], with torchvision's parameter names."""
    return ResNet(
        block,
        (blocks_per_stage,) * len(CIFAR_WIDTHS),
        form,
        classes=classes,
        widths=tuple(width * widen for width in CIFAR_WIDTHS),
        stem=CIFAR_STEM,
        stem_channels=CIFAR_WIDTHS[0],
    )

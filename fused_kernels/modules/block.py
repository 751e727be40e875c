"""Residual blocks: torchvision's constructors, names and state_dict, one fused operator for the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from fused_kernels.errors import Unsupported
from fused_kernels.modules.block_forward import Pair, run
from fused_kernels.modules.folding import forget

if TYPE_CHECKING:
    from typing_extensions import Self


def working_children(shortcut: nn.Sequential) -> list[nn.Module]:
    """The modules of a shortcut that do something; timm's stand behind an Identity where nothing is pooled."""
    return [child for child in shortcut if not isinstance(child, nn.Identity)]


class FusedBlock(nn.Module):
    """relu(main(x) + shortcut(x)), each convolution followed by a batch norm and, but for the last, a ReLU.

    The convolutions and batch norms are ordinary modules under their usual names, and hold the parameters; hooks on
    them are not called, because the block computes all of them at once.
    """

    depth: ClassVar[int] = 0
    """Number of convolutions on the main path."""
    expansion: ClassVar[int] = 1
    """Channels of the result for each channel of the block's width."""
    downsample: nn.Module | None
    materialize: bool = False
    """Whether training writes relu(bn(y)) before each convolution wider than 1x1, instead of computing it in the
    convolution and again in the gradient of its weight: two passes over memory for fewer instructions."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if groups != 1 or base_width != 64 or dilation != 1:
            raise Unsupported(
                f"fused blocks have no groups, other base width or dilation (got groups={groups},"
                f" base_width={base_width}, dilation={dilation}): use torchvision's block for this layer"
            )
        channels = inplanes
        for index, (out, kernel, step) in enumerate(self._convolutions(planes, stride), start=1):
            conv = nn.Conv2d(channels, out, kernel, stride=step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", (norm_layer or nn.BatchNorm2d)(out))
            channels = out
        self.downsample = downsample
        self.stride = stride

    def _convolutions(self, planes: int, stride: int) -> list[tuple[int, int, int]]:
        """Output channels, kernel size and stride of each convolution on the main path."""
        raise NotImplementedError

    def main(self) -> list[Pair]:
        """Convolutions and batch norms of the main path, in order."""
        return [
            (self.get_submodule(f"conv{index}"), self.get_submodule(f"bn{index}"))  # type: ignore[misc]
            for index in range(1, self.depth + 1)
        ]

    def projection(self) -> Pair | None:
        """The shortcut's 1x1 convolution and batch norm, if it has them."""
        if isinstance(self.downsample, nn.Sequential):
            conv, norm = working_children(self.downsample)
            return conv, norm  # type: ignore[return-value]
        return None

    def layers(self) -> list[Pair]:
        """The main path's pairs, then the projection's."""
        projection = self.projection()
        return self.main() if projection is None else [*self.main(), projection]

    def shortcut_kind(self) -> tuple[str, int, tuple[int, int]]:
        """Kind, stride and zero channels before and after, for ``specification.block_text``."""
        projection = self.projection()
        if projection is not None:
            return "projection", projection[0].stride[0], (0, 0)
        if self.downsample is None:
            return "identity", 1, (0, 0)
        before, after = self.downsample.pad_channels  # type: ignore[misc]
        return "pad", self.downsample.stride, (before, after)  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The next inference folds the weights again, even if nothing seems changed."""
        forget(*(conv for conv, _ in self.layers()))
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, K, P, Q], in NHWC memory."""
        return run([self], x)


class FusedBasicBlock(FusedBlock):
    """Two 3x3 convolutions, the stride on the first."""

    depth = 2

    def _convolutions(self, planes: int, stride: int) -> list[tuple[int, int, int]]:
        return [(planes, 3, stride), (planes, 3, 1)]


class FusedBottleneck(FusedBlock):
    """1x1 down, 3x3 with the stride, 1x1 up to four times the width (torchvision's, "v1.5")."""

    depth = 3
    expansion = 4

    def _convolutions(self, planes: int, stride: int) -> list[tuple[int, int, int]]:
        return [(planes, 1, 1), (planes, 3, stride), (planes * self.expansion, 1, 1)]

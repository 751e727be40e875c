"""Blocks of many families of networks, narrow, as PyTorch modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Sequential:
    """A convolution with batch norm."""
    padding = options.pop("padding", kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.up(self.down(x.mean((2, 3), keepdim=True)).relu())
        return x * pooled.sigmoid()


class Residual(nn.Module):
    """A basic block whose parts can be exchanged."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        after: nn.Module | None = None,
        pooled: bool = False,
        identity: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        dilation = options.get("dilation", 1)
        self.first = conv(inputs, outputs, 3, stride, padding=dilation, **options)
        self.second = conv(outputs, outputs)
        self.after = after or nn.Identity()
        self.skip: nn.Module = nn.Identity() if identity else nn.Sequential()
        if stride > 1 or inputs != outputs:
            pool = [nn.AvgPool2d(2, stride)] if pooled else []
            self.skip = nn.Sequential(*pool, *conv(inputs, outputs, 1, 1 if pooled else stride))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.after(self.second(self.first(x).relu()))
        return (branch + self.skip(x)).relu()


class PreActivation(nn.Module):
    """A block with norm and activation in front of its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.first = conv(inputs, outputs, 3, stride)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride > 1 or inputs != outputs
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        ready = self.norm(x).relu()
        branch = self.second(self.first(ready).relu())
        return branch + (x if self.skip is None else self.skip(ready))


class Joined(nn.Module):
    """Two paths whose channels are put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(WIDTH, WIDTH), conv(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x).relu(), self.right(x).relu()], 1)


class Context(nn.Module):
    """The mean over the image, resized to the input and concatenated with it, as in segmentation networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.pooled, self.joined = (
            conv(width, width),
            nn.Conv2d(width, width, 1),
            conv(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        whole = self.pooled(x.mean((2, 3), keepdim=True)).relu()
        spread = F.interpolate(whole, size=size, mode="bilinear", align_corners=False)
        made = self.joined(torch.cat([self.left(x).relu(), spread], 1)).relu()
        return F.interpolate(made, size=(16, 16), mode="bilinear", align_corners=False)


class Mean(nn.Module):
    """Networks that read one image."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Heads(nn.Module):
    """Two answers of one network."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.one, self.two = body, nn.Linear(width, 10), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.one(features), self.two(features)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int = 1, **options: Any) -> None:
        super().__init__()
        self.one, self.two = conv(inputs, inner, 1), conv(inner, inner, 3, stride, **options)
        self.three = conv(inner, outputs, 1)
        changes = stride > 1 or inputs != outputs
        self.skip = conv(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.two(self.one(x).relu()).relu()
        return (self.three(inner) + self.skip(x)).relu()


class EfficientGate(nn.Module):
    """ECA: a convolution over the channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * mixed.view(x.shape[0], -1, 1, 1)


class Selective(nn.Module):
    """SK: the softmax of a gate mixes two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near, self.far = conv(width, width), conv(width, width, padding=2, dilation=2)
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([self.near(x).relu(), self.far(x).relu()], 1)
        pooled = self.up(self.down(paths.sum(1).mean((2, 3), keepdim=True)).relu())
        shares = pooled.view(x.shape[0], 2, -1, 1, 1).softmax(1)
        return (paths * shares).sum(1)


class Stages(nn.Module):
    """Returns the output of each stage."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stem, self.stages = nn.Sequential(conv(3, WIDTH), nn.ReLU()), nn.ModuleList(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, found = self.stem(x), list[Tensor]()
        for stage in self.stages:
            found.append(x := stage(x))
        return tuple(found)


class Pyramid(nn.Module):
    """FPN: the coarse map is added to the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Stages(Residual(WIDTH, WIDTH), Residual(WIDTH, 32, 2))
        self.fine, self.coarse, self.smooth = (
            nn.Conv2d(WIDTH, 24, 1),
            nn.Conv2d(32, 24, 1),
            nn.Conv2d(24, 24, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = self.body(x)
        top = self.coarse(coarse)
        joined = self.fine(fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return self.smooth(joined), top


class Dense(nn.Module):
    """DenseNet's layers, each of which adds channels."""

    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + index * growth), nn.ReLU(),
                *conv(inputs + index * growth, 2 * growth, 1), nn.ReLU(),
                nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
            )
            for index in range(count)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Segmenter(nn.Module):
    """A map of classes in the size of the image; with parallel dilated convolutions as DeepLab."""

    def __init__(self, *, parallel: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(3, WIDTH, 3, 2), nn.ReLU(), Residual(WIDTH, WIDTH, dilation=2), Residual(WIDTH, 32)
        )
        paths = [conv(32, 8, 1), *(conv(32, 8, padding=rate, dilation=rate) for rate in (2, 3))]
        self.paths = nn.ModuleList(paths if parallel else [conv(32, 24)])
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        made = torch.cat([path(found).relu() for path in self.paths], 1)
        return F.interpolate(self.last(made), size=x.shape[-2:], mode="bilinear", align_corners=False)


class Inverted(nn.Module):
    """MobileNet's block: a depthwise convolution between two 1x1, and no activation behind it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        act: type[nn.Module] = nn.ReLU6,
        gated: bool = False,
    ) -> None:
        super().__init__()
        inner = 2 * inputs
        gate = [HardGate(inner)] if gated else []
        self.branch = nn.Sequential(
            conv(inputs, inner, 1), act(), conv(inner, inner, 3, stride, groups=inner), act(), *gate,
            conv(inner, outputs, 1),
        )  # fmt: skip
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


class HardGate(Gate):
    """Squeeze and excitation as MobileNet v3 has it."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.up(self.down(pooled).relu()))


class Partial(nn.Module):
    """ReXNet's addition to the first channels alone."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch, self.inputs = (
            nn.Sequential(conv(inputs, outputs), nn.SiLU(), conv(outputs, outputs)),
            inputs,
        )

    def forward(self, x: Tensor) -> Tensor:
        made = self.branch(x)
        return torch.cat([made[:, : self.inputs] + x, made[:, self.inputs :]], 1)


class Exchange(nn.Module):
    """HRNet: two resolutions, each of which gets the other one added."""

    def __init__(self) -> None:
        super().__init__()
        self.split = conv(WIDTH, 32, 3, 2)
        self.high, self.low = Residual(WIDTH, WIDTH), Residual(32, 32)
        self.up, self.down = conv(32, WIDTH, 1), conv(WIDTH, 32, 3, 2)
        self.last = conv(WIDTH, 32, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.high(x), self.low(self.split(x).relu())
        fused = (high + F.interpolate(self.up(low), scale_factor=2.0, mode="nearest")).relu()
        return self.last(fused).relu() + (self.down(high) + low).relu()


class Scales(nn.Module):
    """Res2Net: the channels in groups, each of which gets the one before added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.three = conv(width, width, 1), conv(width, width, 1)
        self.convs = nn.ModuleList(conv(width // 4, width // 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.one(x).relu().chunk(4, 1)
        found, before = [parts[0]], None
        for part, layer in zip(parts[1:], self.convs, strict=True):
            before = layer(part if before is None else part + before).relu()
            found.append(before)
        return (self.three(torch.cat(found, 1)) + x).relu()


class Aggregated(nn.Module):
    """DLA: a root joins the outputs of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Residual(WIDTH, WIDTH), Residual(WIDTH, WIDTH)
        self.root = conv(2 * WIDTH, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        return self.root(torch.cat([first, self.two(first)], 1)).relu()


class Blur(nn.Module):
    """A fixed filter in front of a stride."""

    def __init__(self, width: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.width = width
        self.register_buffer("kernel", (line[:, None] * line / 16).expand(width, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=self.width)


class PaddedSkip(nn.Module):
    """Option A: every other pixel, and zeros in new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(WIDTH, 32, 3, 2), conv(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return (self.two(self.one(x).relu()) + skip).relu()


class Shuffled(nn.Module):
    """ShuffleNet: grouped convolutions and an exchange of channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = conv(width, width, 1, groups=4), conv(width, width, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        mixed = self.one(x).relu().view(count, 4, channels // 4, height, width).transpose(1, 2)
        return (self.two(mixed.reshape(count, channels, height, width)) + x).relu()


class UNet(nn.Module):
    """Down and up again, with a transposed convolution and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = conv(3, WIDTH), conv(WIDTH, 32, 3, 2)
        self.up = nn.ConvTranspose2d(32, WIDTH, 2, 2)
        self.joined, self.last = conv(2 * WIDTH, WIDTH), nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x).relu()
        wide = self.up(self.coarse(fine).relu())
        return self.last(self.joined(torch.cat([fine, wide], 1)).relu())


class FrozenNorm(nn.Module):
    """A norm of constants, as torchvision's detectors have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(width) + 0.5)
        self.register_buffer("bias", torch.randn(width) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Frozen(nn.Module):
    """A residual block with frozen norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False), FrozenNorm(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), FrozenNorm(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return (self.branch(x) + x).relu()

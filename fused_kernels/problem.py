"""Problems that a tile is chosen for: one matrix product of one convolution, or the chain kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fused_kernels.operands.geometry import Conv

Kind = Literal["fprop", "dgrad", "wgrad", "chain"]


@dataclass(frozen=True)
class Problem:
    """One convolution product, by everything that its speed depends on. [n, h, w, c] is the convolution's input.

    In a chain, ``conv`` is the 3x3, which keeps c channels, and k is the number of the block's output channels.
    """

    kind: Kind
    dtype: torch.dtype
    n: int
    h: int
    w: int
    c: int
    k: int
    conv: Conv
    prologue: str = "identity"
    epilogue: str = "store"
    following: int = 0
    """Channels of the next block's first convolution, which a chain computes too; 0 if there is none."""

    @property
    def pixels(self) -> int:
        """Pixels of the convolution's output, over all images."""
        p, q = self.conv.output_size(self.h, self.w)
        return self.n * p * q

    @property
    def rows(self) -> int:
        """Rows of its product, or of each of them."""
        if self.kind == "dgrad":  # one product for each parity of the input's pixels
            return self.n * -(-self.h // self.conv.stride) * -(-self.w // self.conv.stride)
        return self.c if self.kind == "wgrad" else self.pixels

    @property
    def cols(self) -> int:
        """Columns of the product."""
        return self.c if self.kind == "dgrad" else self.k

    @property
    def depth(self) -> int:
        """Length of the reduction for one tap."""
        if self.kind == "wgrad":
            return self.pixels
        return self.k if self.kind == "dgrad" else self.c

    @property
    def macs(self) -> int:
        """Multiplications and additions."""
        taps = self.conv.r * self.conv.s
        if self.kind == "chain":
            return self.pixels * (taps * self.c * self.c + self.k * (self.c + self.following))
        return self.pixels * taps * self.c * self.k

    @property
    def outputs(self) -> int:
        """Elements of the result; a wgrad's are those of the weight."""
        if self.kind == "wgrad":
            return self.conv.r * self.conv.s * self.c * self.k
        return (self.n * self.h * self.w if self.kind == "dgrad" else self.pixels) * self.cols

    @property
    def key(self) -> str:
        """The name of this problem in a tuning table."""
        conv, dtype = self.conv, str(self.dtype).removeprefix("torch.")
        following = f"->{self.following}" if self.following else ""
        return (
            f"{self.kind} {dtype} n{self.n} {self.h}x{self.w} {self.c}->{self.k}{following}"
            f" {conv.r}x{conv.s}/{conv.stride}+{conv.padding} {self.prologue} {self.epilogue}"
        )

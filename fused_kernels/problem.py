"""What a tile configuration is chosen for: one matrix product of one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fused_kernels.geometry import Conv

Kind = Literal["fprop", "dgrad", "wgrad"]


@dataclass(frozen=True)
class Problem:
    """One convolution product, by everything that its speed depends on. [n, h, w, c] is the convolution's input."""

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

    @property
    def rows(self) -> int:
        """Rows of the largest of its products."""
        p, q = self.conv.output_size(self.h, self.w)
        if self.kind == "fprop":
            return self.n * p * q
        if self.kind == "wgrad":
            return self.c
        return self.n * -(-self.h // self.conv.stride) * -(-self.w // self.conv.stride)

    @property
    def cols(self) -> int:
        """Columns of the product."""
        return self.c if self.kind == "dgrad" else self.k

    @property
    def depth(self) -> int:
        """Length of the reduction for one tap."""
        if self.kind == "wgrad":
            p, q = self.conv.output_size(self.h, self.w)
            return self.n * p * q
        return self.k if self.kind == "dgrad" else self.c

    @property
    def key(self) -> str:
        """The name of this problem in a tuning table."""
        conv, dtype = self.conv, str(self.dtype).removeprefix("torch.")
        return (
            f"{self.kind} {dtype} n{self.n} {self.h}x{self.w} {self.c}->{self.k}"
            f" {conv.r}x{conv.s}/{conv.stride}+{conv.padding} {self.prologue} {self.epilogue}"
        )

"""Convolutions as matrix products: the input pixels and taps that each row of a product needs.

fprop    y[n,p,q,k]  = sum_{r,s,c} x[n, p*stride - padding + r, q*stride - padding + s, c] * w[k,r,s,c]
dgrad    dx[n,h,w,c] = sum_{r,s,k} dy[n, (h + padding - r)/stride, (w + padding - s)/stride, k] * w[k,r,s,c]

Only taps with (h + padding - r) divisible by the stride reach dx[h], so dgrad of stride t is t*t dense
products, one for each parity (h mod t, w mod t). Both views are one affine walk over taps, ``Gather``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fused_kernels.errors import ShapeError


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a gather.

    Row ``o`` meets tap ``first + i * every`` at input ``o * in_stride + base + i * step``.
    """

    taps: int
    """Taps that take part; 0 where a parity meets none."""
    first: int
    base: int
    out_base: int
    """The output coordinate of row ``o`` is ``o * out_stride + out_base``."""


@dataclass(frozen=True)
class Gather:
    """The walk of one matrix product over taps and pixels; see ``Axis``."""

    h: Axis
    w: Axis
    in_stride: int
    step: int
    """+1 where a later tap reads a later pixel (fprop), -1 where it reads an earlier one (dgrad)."""
    every: int
    out_stride: int

    @property
    def pointwise(self) -> bool:
        """Whether row (p, q) meets one tap, at pixel (p, q), and is pixel (p, q) of the output."""
        strides = self.in_stride == self.out_stride == 1
        return strides and self.h.taps == self.w.taps == 1 and self.h.base == self.w.base == 0

    def named(self) -> dict[str, int]:
        """The kernel's compile-time arguments by name, as ``operands.arguments`` passes them."""
        return {
            "TAPS_H": self.h.taps,
            "TAPS_W": self.w.taps,
            "FIRST_H": self.h.first,
            "FIRST_W": self.w.first,
            "BASE_H": self.h.base,
            "BASE_W": self.w.base,
            "OUT_BASE_H": self.h.out_base,
            "OUT_BASE_W": self.w.out_base,
            "IN_STRIDE": self.in_stride,
            "STEP": self.step,
            "EVERY": self.every,
            "OUT_STRIDE": self.out_stride,
        }


@dataclass(frozen=True)
class Conv:
    """A convolution's window: kernel [R, S], one stride and one padding for both axes, no dilation or groups."""

    r: int
    s: int
    stride: int = 1
    padding: int = 0

    def output_size(self, h: int, w: int) -> tuple[int, int]:
        """[P, Q] for an input plane [H, W].

        Raises:
            ShapeError: the window is larger than the padded plane.
        """
        p = (h + 2 * self.padding - self.r) // self.stride + 1
        q = (w + 2 * self.padding - self.s) // self.stride + 1
        if p < 1 or q < 1:
            raise ShapeError(
                f"a {self.r}x{self.s} convolution with padding {self.padding} needs a larger input than {h}x{w}"
            )
        return p, q

    @property
    def pointwise(self) -> bool:
        """Whether output pixel i reads only input pixel i."""
        return self.r == self.s == self.stride == 1 and self.padding == 0

    def fprop(self) -> Gather:
        """Rows are output pixels."""
        return Gather(
            h=Axis(self.r, 0, -self.padding, 0),
            w=Axis(self.s, 0, -self.padding, 0),
            in_stride=self.stride,
            step=1,
            every=1,
            out_stride=1,
        )

    def dgrad(self) -> list[Gather]:
        """One gather for each parity of the input pixel; rows are input pixels of that parity."""
        return [
            Gather(
                h=self._parity(self.r, parity_h),
                w=self._parity(self.s, parity_w),
                in_stride=1,
                step=-1,
                every=self.stride,
                out_stride=self.stride,
            )
            for parity_h in range(self.stride)
            for parity_w in range(self.stride)
        ]

    def _parity(self, taps: int, parity: int) -> Axis:
        first = (parity + self.padding) % self.stride
        count = max(0, ceil_div(taps - first, self.stride))
        return Axis(count, first, (parity + self.padding - first) // self.stride, parity)


def rows_of_parity(size: int, parity: int, stride: int) -> int:
    """The number of elements of ``range(size)`` that leave the remainder ``parity``."""
    return max(0, ceil_div(size - parity, stride))


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)

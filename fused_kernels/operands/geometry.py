"""Convolutions as matrix products: the input pixels and taps that each row of a product needs.

fprop    y[n,p,q,k]  = sum_{r,s,c} x[n, p*stride - padding + r, q*stride - padding + s, c] * w[k,r,s,c]
dgrad    dx[n,h,w,c] = sum_{r,s,k} dy[n, (h + padding - r)/stride, (w + padding - s)/stride, k] * w[k,r,s,c]

Only taps with (h + padding - r) divisible by the stride reach dx[h], so dgrad of stride t is t*t dense
products, one for each parity (h mod t, w mod t), all in one launch. Both views are one affine walk over taps.
"""

from __future__ import annotations

from dataclasses import dataclass

from fused_kernels.errors import ShapeError


@dataclass(frozen=True)
class Gather:
    """The walk of a convolution's products over taps and pixels.

    With out_stride = 1, row ``o`` of an axis meets tap ``i`` at input ``o * in_stride + base + i * step``. Otherwise
    there is a product for each parity of the output, ``kernels.conv.accumulate_parity``.
    """

    taps_h: int
    taps_w: int
    base_h: int
    base_w: int
    in_stride: int
    step: int
    """+1 where a later tap reads a later pixel (fprop), -1 where it reads an earlier one (dgrad)."""
    out_stride: int

    @property
    def parities(self) -> int:
        """Products of the launch."""
        return self.out_stride * self.out_stride

    @property
    def pointwise(self) -> bool:
        """Whether row (p, q) meets one tap, at pixel (p, q), and is pixel (p, q) of the output."""
        strides = self.in_stride == self.out_stride == 1
        return strides and self.taps_h == self.taps_w == 1 and self.base_h == self.base_w == 0

    def named(self) -> dict[str, int]:
        """The kernel's compile-time arguments by name, as ``operands.arguments`` passes them."""
        return {name.upper(): value for name, value in vars(self).items()}


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
        base = -self.padding
        return Gather(self.r, self.s, base, base, in_stride=self.stride, step=1, out_stride=1)

    def dgrad(self) -> Gather:
        """Rows are input pixels of one parity."""
        base = self.padding
        return Gather(self.r, self.s, base, base, in_stride=1, step=-1, out_stride=self.stride)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)

"""Zero sums: they make a padded 3x3 convolution exact when its input stores zero as an integer other than 0."""

import triton
import triton.language as tl


@triton.jit
def add_zero_sums(acc, sums_ptr, h, w, H, W, ok_m, cols, ok_n, COLS):
    """acc + the row of ``sums`` int32 [16, COLS] for the borders that each row's window, first pixel (h, w), crosses.

    ``operands/zero_point.py`` makes the table. Most windows cross no border and share one row, which is loaded once.
    This runs before the products, while the registers that they take are free.
    """
    above = (h < 0).to(tl.int32)
    below = (h + 3 > H).to(tl.int32)
    left = (w < 0).to(tl.int32)
    right = (w + 3 > W).to(tl.int32)
    borders = above + below * 2 + left * 4 + right * 8
    inside = tl.load(sums_ptr + cols, mask=ok_n, other=0)[None, :]
    at = borders[:, None] * COLS + cols[None, :]
    crossing = (ok_m & (borders > 0))[:, None] & ok_n[None, :]
    return acc + tl.load(sums_ptr + at, mask=crossing, other=inside)

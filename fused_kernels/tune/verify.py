"""Checking a tile's result against plain PyTorch: its error may be at most twice that of PyTorch.

The truth is computed in fp32 (fp64 for fp32) from the same operands. A 16-bit result may be twice as far from it, in
relative L2 and in its worst element, as that of the same-dtype PyTorch computation (flash-attention's rule), plus an
allowance for sums that PyTorch rounds to the exact value by chance. int8 may differ from the reference by one in few
elements, where fused multiply-add moved a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fused_kernels.choice import choosing
from fused_kernels.launch import Launch, listening
from fused_kernels.tiles import Tile
from fused_kernels.tune.call import Call

ALLOWANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error beyond the doubled one: about two units in the last place of 16 bits, a sum's order in fp32."""
INT8_DIFFERENT = 1e-3
"""Share of the elements of an int8 result that may differ, by one."""


class Verifier:
    """Checks the tiles of one call; truth and reference are computed once."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._dtype = call.dtype
        self._reference = call.reference()
        self._truth = self._reference if self._dtype == torch.int8 else call.truth()

    def __call__(self, tile: Tile) -> str | None:
        """Say what is wrong with the results of ``tile``, or return None."""
        with choosing(lambda _: tile), poisoned():
            results = self._call.run()
        for index, (ours, reference, truth) in enumerate(
            zip(results, self._reference, self._truth, strict=True)
        ):
            if ours.dtype == torch.int8:
                wrong = _int8_difference(ours, truth)
            else:
                wrong = _difference(ours, reference, truth, ALLOWANCE.get(self._dtype, 0.0))
            if wrong:
                return f"result {index} {wrong}"
        return None


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every tensor with NaN (int8: -128) before the first launch that writes it, so that gaps are seen.

    Without this a tile that leaves an element out might find the right value there, left by the tile before it.
    """
    met: set[int] = set()

    def poison(launch: Launch) -> None:
        for tensor, written in launch.tensors():
            if written and tensor.data_ptr() not in met:
                met.add(tensor.data_ptr())
                tensor.fill_(float("nan") if tensor.is_floating_point() else -128)

    with listening(poison):
        yield


def relative_error(ours: Tensor, truth: Tensor) -> tuple[float, float]:
    """Relative L2 error, and the worst element's error as a share of the largest true one."""
    difference = ours.to(truth.dtype) - truth
    norm, largest = torch.linalg.vector_norm(truth), truth.abs().amax()
    return _share(torch.linalg.vector_norm(difference), norm), _share(difference.abs().amax(), largest)


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) else float(part)


def _difference(ours: Tensor, reference: Tensor, truth: Tensor, allowance: float) -> str | None:
    found, own = relative_error(ours, truth), relative_error(reference, truth)
    for name, error, baseline in zip(("in relative L2", "in its worst element"), found, own, strict=True):
        bound = 2 * baseline + allowance
        if not error <= bound:  # written so that a NaN fails
            return f"is off by {error:.1e} {name}, where {bound:.1e} is allowed"
    return None


def _int8_difference(ours: Tensor, truth: Tensor) -> str | None:
    difference = (ours.int() - truth.int()).abs()
    worst, share = int(difference.max()), float((difference > 0).float().mean())
    if worst > 1 or share > INT8_DIFFERENT:
        return f"differs in {100 * share:.2g} % of its elements, by up to {worst}"
    return None

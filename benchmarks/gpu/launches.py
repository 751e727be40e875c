"""Launches of a fused network, found without running it: bytes, arithmetic and the least time that these need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.networks import Scale, fused, without_values
from benchmarks.gpu.workloads import input_of
from benchmarks.traffic.footprint import bytes_of
from fused_kernels.fusing import fuse
from fused_kernels.launch import Launch, implementation, recording


def network_launches(
    scale: Scale,
    batch: int,
    dtype: torch.dtype,
    *,
    training: bool,
    part: str = "",
    backward: bool = True,
    materialize: bool = False,
) -> list[Launch]:
    """Every launch of one forward (and backward) pass of the network or one of its parts, on tensors without values.

    As under autocast: convolutions have ``dtype``, batch norms fp32. ``materialize`` is explained at ``FusedBlock``.
    """
    network: nn.Module = fused(scale, without_values(scale)).train(training)
    fuse(network, materialize=materialize)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    if part:
        c, h = input_of(scale, part)
        network, x = network.get_submodule(part), _meta(batch, c, h, dtype).requires_grad_(training)
    else:
        x = _meta(batch, 3, scale.image, dtype)
    with implementation("kernels"), recording() as launches:
        if training:
            out = network(x)
            if backward:
                torch.autograd.backward(out, torch.empty_like(out))
        else:
            with torch.no_grad():
                network.requires_grad_(False)(x)
    return launches


def _meta(n: int, c: int, h: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(n, h, h, c, dtype=dtype, device="meta").permute(0, 3, 1, 2)


def _of_chain(a: dict[str, Any]) -> float:
    return float(2 * a["M"] * (9 * a["WIDTH"] ** 2 + a["EXPANDED"] * (a["WIDTH"] + a["NEXT"])))


def _of_stem_with_pool(a: dict[str, Any]) -> float:
    images = a["M"] / (a["STRIPS"] * a["POOLED_W"])
    return float(2 * images * a["P"] * a["Q"] * a["COLS"] * a["DEPTH"] * a["TAPS"])


_FLOPS: dict[str, Callable[[dict[str, Any]], float]] = {
    "conv.conv_kernel": lambda a: 2.0 * a["M"] * a["COLS"] * a["DEPTH"] * a["TAPS_H"] * a["TAPS_W"],
    "wgrad.wgrad_kernel": lambda a: 2.0 * a["M"] * a["C"] * a["K"] * a["R"] * a["S"],
    "stem.stem_wgrad_kernel": lambda a: 2.0 * a["M"] * a["K"] * a["TAPS"] * a["DEPTH"],
    "stem.conv_pool_kernel": _of_stem_with_pool,
    "chain.chain_kernel": _of_chain,
}


def flops_of(launch: Launch) -> float:
    """Multiplications and additions of one launch's matrix products; what a kernel computes twice counts once."""
    count = _FLOPS.get(launch.kernel)
    return 0.0 if count is None else count(launch.arguments)


def is_int8(launch: Launch) -> bool:
    """Whether a launch multiplies int8."""
    return any(tensor.dtype == torch.int8 and not written for tensor, written in launch.tensors())


def floor_ms(launches: Iterable[Launch], ceilings: Ceilings) -> float:
    """The sum, over launches, of the time that arithmetic or memory needs at the measured ceilings."""
    return sum(
        ceilings.floor_ms(flops_of(launch), sum(bytes_of(launch).values()), int8=is_int8(launch))
        for launch in launches
    )

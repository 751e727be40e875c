"""Times one residual block of each kind: forward, forward with backward, and inference, fused modules against eager.

On a CPU the fused modules run the references of their kernels in plain PyTorch, so the expected ratio is near 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.rows import Row
from fused_kernels import fuse
from rescompile.measuring.race import Contender, race
from rescompile.models.registry import create, find

if TYPE_CHECKING:
    from benchmarks.conftest import Session

CASES = {
    f"{kind} {what}": (network, channels, what)
    for kind, network, channels in (("basic block", "resnet18", 64), ("bottleneck", "resnet50", 256))
    for what in ("forward", "forward + backward", "inference")
}
OURS, EAGER, COMPILED = "fused_kernels on CPU", "PyTorch eager", "torch.compile"
CONTENDERS = (OURS, EAGER, COMPILED)
BATCH, SIDE = 4, 28
ALLOWED = 1e-4
"""Relative L2 difference to eager."""
_SECONDS = 1.5


def raced(case: str, session: Session) -> list[Row]:
    """The rows of one case, which is timed once."""
    known = [row for row in _DONE if row.case == case]
    if not known:
        known = _race(case, session)
        _DONE.extend(known)
    return known


_DONE: list[Row] = []


def _race(case: str, session: Session) -> list[Row]:
    network, channels, what = CASES[case]
    torch.manual_seed(0)
    torch.set_num_threads(session.threads)
    side, batch = (8, 2) if session.tiny else (SIDE, BATCH)
    eager = _holder(network)
    fused = copy.deepcopy(eager)
    report = fuse(fused)
    modules: dict[str, nn.Module] = {OURS: fused, EAGER: eager}
    skipped: dict[str, str] = {}
    if report.left:
        del modules[OURS]
        skipped[OURS] = f"fuse left the block: {next(iter(report.left.values()))}"
    if session.tiny or what != "inference":
        skipped[COMPILED] = "Inductor compiles too long for so small a case; inference has the row"
    else:
        modules[COMPILED] = torch.compile(copy.deepcopy(eager))  # type: ignore[assignment]
    x = torch.randn(batch, channels, side, side)
    expected = _step(eager, x, what)()
    contenders = {
        name: Contender(_step(module, x, what), partial(_check, expected=expected, name=name))
        for name, module in modules.items()
    }
    timings = race(contenders, seconds=0.05 if session.tiny else _SECONDS)
    return [
        Row(
            suite="kernels", case=case, contender=name, ours=name == OURS, batch=batch, allowed=ALLOWED,
            timing=timings.get(name), skipped=skipped.get(name), floor_ms=_floor(eager, x, what, session),
        )
        for name in CONTENDERS
    ]  # fmt: skip


def _holder(network: str) -> nn.Module:
    """A module whose child is an identity block, which ``fuse`` recognises, with batch norms as after training."""
    holder = nn.Sequential(create(find(depth=None, name=network), 10).layer1[1])
    for module in holder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
    return holder


def _step(module: nn.Module, x: Tensor, what: str) -> Callable[[], Tensor]:
    if what == "inference":
        module.eval()

        def infer() -> Tensor:
            with torch.inference_mode():
                found: Tensor = module(x)
                return found

        return infer
    module.train()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0  # a thousand steps on one batch leave the statistics as they are
    fed = x.clone().requires_grad_()

    def train() -> Tensor:
        y: Tensor = module(fed)
        if what == "forward":
            return y.detach()
        fed.grad = None
        (gradient,) = torch.autograd.grad(y.square().mean(), fed)
        return gradient

    return train


def _check(answer: Tensor, *, expected: Tensor, name: str) -> None:
    error = float((answer - expected).norm() / expected.norm())
    if not error <= ALLOWED:
        raise ArithmeticError(f"{name} is off by {error:.3g}, allowed {ALLOWED:g}")


def _floor(module: nn.Module, x: Tensor, what: str, session: Session) -> float:
    """Least time for the convolutions' operations or bytes at the measured rates; three times that with backward."""
    ops, moved = 0, 0
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            ops += 2 * pixels * conv.weight.numel()
            moved += 4 * (pixels * (conv.in_channels + conv.out_channels) + conv.weight.numel())
    times = 3 if what == "forward + backward" else 1
    return session.roofline.floor_ms(times * ops, 0, times * moved)

"""One fused operation on given operands, and the results that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fused_kernels.launch import implementation
from fused_kernels.operands.partials import Partials
from fused_kernels.references import statistics


@dataclass(frozen=True)
class OpCase:
    """An operation of ``fused_kernels.ops`` with its operands."""

    op: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    peers: Callable[[], Mapping[str, Callable[[], Any]]] = dict
    """Makes the same work by torch's own operators, by name; they may hold copies of the operands."""
    moments: bool = True
    """Partial sums among the results are (mean, M2); otherwise they are plain sums."""

    def run(self) -> Any:
        """Ours."""
        return self.op(*self.args, **self.keywords)

    def torchs(self) -> dict[str, Tensor]:
        """The results of plain PyTorch in the same dtypes."""
        with implementation("reference"):
            return self.named(self.run())

    def truth(self) -> dict[str, Tensor]:
        """The results in float64; of int8 those of integers, which are exact."""
        if any(tensor.dtype == torch.int8 for tensor in tensors(self.args)):
            return self.torchs()
        with implementation("reference"):
            return self.named(
                self.op(*widened(self.args), **{k: widened(v) for k, v in self.keywords.items()})
            )

    def named(self, results: Any) -> dict[str, Tensor]:
        """Every result that is a tensor, by a name; partial sums are added up, for their tiles may differ."""
        named: dict[str, Tensor] = {}
        for index, result in enumerate(results if isinstance(results, tuple) else (results,)):
            if isinstance(result, Partials):
                with implementation("reference"):
                    total = statistics.merge(result) if self.moments else statistics.sums(result)
                kinds = ("mean", "M2") if self.moments else ("sum g", "sum gy", "sum gd")
                named |= dict(zip(kinds, total, strict=False))
            elif isinstance(result, Tensor):
                named[f"result {index}"] = result
        return named

    def moved(self, results: Any) -> int:
        """Bytes of every operand, read once, and every result, written once."""
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors((self.args, results)))


def widened(value: Any) -> Any:
    """``value`` with every floating-point tensor in it as float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(widened(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {item.name: getattr(value, item.name) for item in fields(value)}
        changed = {name: widened(item) for name, item in inner.items() if isinstance(item, Tensor)}
        return replace(value, **changed) if changed else value
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor within tuples, lists and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from tensors(getattr(value, item.name))


class Operands:
    """Seeded random operands on one device; nothing is a plain zero or one, and scales have both signs."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        torch.manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """fp32 normal numbers."""
        return torch.randn(*shape, device=self.device)

    def activation(self, n: int, c: int, h: int, *, relu: bool = False) -> Tensor:
        """[n, c, h, h] in NHWC memory; int8 fills its range."""
        if self.dtype == torch.int8:
            x = torch.randint(0 if relu else -128, 128, (n, h, h, c), device=self.device, dtype=torch.int8)
        else:
            x = torch.randn(n, h, h, c, device=self.device, dtype=self.dtype)
            x = x.relu_() if relu else x.add_(0.25)
        return x.permute(0, 3, 1, 2)

    def weight(self, k: int, c: int, r: int, s: int) -> Tensor:
        """[k, c, r, s] in KRSC memory, so sized that outputs are about 1."""
        if self.dtype == torch.int8:
            w = torch.randint(-127, 128, (k, r, s, c), device=self.device, dtype=torch.int8)
        else:
            w = (self.normal(k, r, s, c) / (c * r * s) ** 0.5).to(self.dtype)
        return w.permute(0, 3, 1, 2)

    def vectors(self, c: int) -> Tensor:
        """fp32 [4, c] of some batch norm: mean, invstd, scale, shift."""
        mean, invstd, gamma, beta = self.normal(c), self.normal(c).abs() + 0.5, self.normal(c), self.normal(c)
        return torch.stack([mean, invstd, gamma * invstd, beta - mean * gamma * invstd])

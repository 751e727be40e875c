"""A problem as a call of its operation on random tensors, to be verified and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_kernels.errors import Unsupported
from fused_kernels.launch import implementation
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.packed_image import depth
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import chain, convolution, head, inference, stem
from fused_kernels.ops.image import pack
from fused_kernels.problem import Problem
from fused_kernels.references import statistics

_STEM_WINDOWS = {
    conv.r * depth(conv): conv for conv in (Conv(7, 7, stride=2, padding=3), Conv(3, 3, padding=1))
}
"""Windows of the stems, by the channels of their wgrad problem."""
SEED = 20240607


@dataclass(frozen=True)
class Call:
    """One operation and its tensors by parameter name; ``choice.choosing`` decides which tile computes it."""

    function: Callable[..., Any]
    operands: dict[str, Tensor]
    moments: bool = False
    """Partial sums among the results are means and M2, not plain sums."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations."""
        return next(iter(self.operands.values())).dtype

    def launch(self) -> Any:
        """Run the operation."""
        return self.function(**self.operands)

    def run(self) -> list[Tensor]:
        """Run the operation; partial sums are added up, so that results compare whatever the tile."""
        results = self.launch()
        return list(self._merged(results if isinstance(results, tuple) else (results,)))

    def reference(self) -> list[Tensor]:
        """The results of plain PyTorch in the same dtypes."""
        with implementation("reference"):
            return self.run()

    def truth(self) -> list[Tensor]:
        """The results of plain PyTorch in fp32 from the same 16-bit operands; in fp64 from fp32 ones."""
        wide = torch.float64 if self.dtype == torch.float32 else torch.float32
        wider = replace(self, operands={name: tensor.to(wide) for name, tensor in self.operands.items()})
        with _full_precision():
            return wider.reference()

    def _merged(self, results: tuple[Tensor | Partials | None, ...]) -> Iterator[Tensor]:
        for result in results:
            if isinstance(result, Partials):
                with implementation("reference"):
                    yield from statistics.merge(result) if self.moments else statistics.sums(result)
            elif result is not None:
                yield result


def call_of(problem: Problem, device: torch.device) -> Call:
    """The operation that poses ``problem``, with random operands on ``device``.

    A block's gradient is posed in its most common form: a shortcut of stride 1, no projection.

    Raises:
        Unsupported: no operation poses such a problem.
    """
    call = _CALLS[problem.kind](problem, _Operands(problem, device))
    if call is None:
        raise Unsupported(
            f"no operation poses the problem {problem.key}: the tuning table is for another version"
        )
    return call


class _Operands:
    """Seeded random operands of a problem."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self._problem, self.device = problem, device
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(SEED)

    def normal(self, *shape: int) -> Tensor:
        """fp32."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    def activation(self, n: int, c: int, h: int, w: int, scale: float = 1.0) -> Tensor:
        """[n, c, h, w] in NHWC memory, times ``scale``; int8 over its whole range instead."""
        dtype = self._problem.dtype
        if dtype == torch.int8:
            size, generator, device = (n, c, h, w), self._generator, self.device
            return nhwc(torch.randint(-127, 128, size, generator=generator, device=device, dtype=dtype))
        return nhwc((self.normal(n, c, h, w) * scale).to(dtype))

    def input(self) -> Tensor:
        """The convolution's input."""
        problem = self._problem
        return self.activation(problem.n, problem.c, problem.h, problem.w)

    def output(self) -> Tensor:
        """A tensor with the shape of the convolution's output."""
        problem = self._problem
        return self.activation(problem.n, problem.k, *problem.conv.output_size(problem.h, problem.w))

    def weight(self) -> Tensor:
        """The weight of the problem's convolution."""
        problem, conv = self._problem, self._problem.conv
        return self.weights(problem.k, problem.c, conv.r, conv.s)

    def weights(self, k: int, c: int, r: int, s: int) -> Tensor:
        """[k, c, r, s] in KRSC memory, scaled so that outputs are about 1."""
        return self.activation(k, c, r, s, (c * r * s) ** -0.5)

    def vectors(self) -> Tensor:
        """fp32 [4, c], the vectors of a batch norm: mean, invstd, scale, shift; scales of both signs."""
        c = self._problem.c
        mean, invstd, gamma, beta = self.normal(c), self.normal(c).abs() + 0.5, self.normal(c), self.normal(c)
        return torch.stack([mean, invstd, gamma * invstd, beta - mean * gamma * invstd])

    def prologue(self) -> dict[str, Tensor]:
        """The vectors of the batch norm before the convolution, if there is one."""
        return {} if self._problem.prologue == "identity" else {"vectors": self.vectors()}

    def folded(self, k: int, products: int) -> dict[str, Tensor]:
        """fp32 [k]: a bias and, in int8, the scale that spreads sums of ``products`` over int8's range."""
        if self._problem.dtype != torch.int8:
            return {"bias": self.normal(k)}
        scale = (self.normal(k).abs() + 0.5) * 40 / (74**2 * products**0.5)
        return {"bias": self.normal(k) * 10, "scale": scale}


def _fprop(problem: Problem, new: _Operands) -> Call | None:
    conv, epilogue, int8 = problem.conv, problem.epilogue, problem.dtype == torch.int8
    if epilogue.startswith("stem"):
        return _stem(problem, new)
    operands = {"x": new.input(), "w": new.weight()}
    folded = new.folded(problem.k, problem.c * conv.r * conv.s)
    function: Callable[..., Any]
    match epilogue:
        case "moments":
            function = partial(convolution.conv_moments, conv=conv)
            return Call(function, operands | new.prologue(), moments=True)
        case "store":
            return Call(partial(convolution.conv_plain, conv=conv), operands | new.prologue())
        case "logits":
            operands |= {"w": operands["w"].flatten(1), "b": folded.pop("bias")} | folded
            return Call(partial(head.pool_fc_int8, pool_scale=1.0) if int8 else head.pool_fc, operands)
        case "bias" | "bias_relu" | "bias_residual_relu":
            function = partial(inference.conv_bias, conv=conv, relu=epilogue != "bias")
        case "requantize" | "requantize_relu" | "requantize_residual" | "requantize_residual_relu":
            residual_scale = 0.5 if "residual" in epilogue else None
            relu = epilogue.endswith("_relu")
            function = partial(inference.conv_int8, conv=conv, relu=relu, residual_scale=residual_scale)
        case _:
            return None
    residual = {"residual": new.output()} if "residual" in epilogue else {}
    return Call(function, operands | folded | residual)


def _stem(problem: Problem, new: _Operands) -> Call | None:
    conv = problem.conv
    image = new.activation(problem.n, 3, problem.h, problem.w)
    operands = {"image": image, "w": new.weights(problem.k, 3, conv.r, conv.s)}
    match problem.epilogue:
        case "stem_moments":
            return Call(lambda image, w: stem.stem_conv_moments(image, w, conv)[:2], operands, moments=True)
        case "stem_store":
            return Call(lambda image, w: stem.stem_conv(image, w, conv)[0], operands)
        case "stem_bias_relu" | "stem_pool":
            function = partial(stem.stem_inference, conv=conv, pool=problem.epilogue == "stem_pool")
            return Call(function, operands | new.folded(problem.k, 3 * conv.r * conv.s))
    return None


def _dgrad(problem: Problem, new: _Operands) -> Call | None:
    conv, size = problem.conv, (problem.n, problem.c, problem.h, problem.w)
    operands = {"dy": new.output(), "w": new.weight()}
    function: Callable[..., Any]
    match problem.epilogue:
        case "drelu":
            operands |= {"y": new.input(), "vectors": new.vectors()}
            return Call(partial(convolution.dgrad_drelu, conv=conv), operands)
        case "block_gradient":
            operands |= {"shortcut": new.input(), "z": new.input().relu_(), "y": new.input()}
            function = partial(convolution.dgrad_block, conv=conv, stride=1)
            return Call(function, operands | {"vectors": new.vectors()})
        case "shortcut":
            function = partial(convolution.dgrad_shortcut, conv=conv, size=size)
            return Call(function, operands | {"shortcut": new.input()})
        case "store":
            return Call(partial(convolution.dgrad_shortcut, conv=conv, size=size, shortcut=None), operands)
    return None


def _wgrad(problem: Problem, new: _Operands) -> Call | None:
    if problem.epilogue == "store":
        operands = {"x": new.input(), "dy": new.output()} | new.prologue()
        return Call(partial(convolution.wgrad, conv=problem.conv), operands)
    if problem.epilogue == "dy":
        g, y, norm = new.output(), new.output(), _Operands(replace(problem, c=problem.k), new.device)
        operands = {"x": new.input(), "g": g, "y": y, "y_vectors": norm.vectors()}
        operands |= {"coefficients": new.normal(3, problem.k)} | new.prologue()
        return Call(partial(convolution.wgrad_and_dy, conv=problem.conv), operands)
    if problem.epilogue != "stem":
        return None
    conv = _STEM_WINDOWS[problem.c]
    image = new.activation(problem.n, 3, problem.h * conv.stride, problem.w * conv.stride)
    with implementation("reference"):
        packed = pack(image, conv, problem.dtype)
    function = partial(stem.stem_wgrad, conv=conv, channels=3)
    return Call(function, {"packed": packed, "dy": new.output()})


def _chain(problem: Problem, new: _Operands) -> Call | None:
    if problem.epilogue != "store":
        return None
    c, k, int8 = problem.c, problem.k, problem.dtype == torch.int8
    shapes = {"conv2": (c, c, 3), "conv3": (k, c, 1)}
    if problem.following:
        shapes["conv1"] = (problem.following, k, 1)
    operands = {"x": new.input(), "residual": new.output()}
    for layer, (out, channels, r) in shapes.items():
        operands[f"{layer} w"] = new.weights(out, channels, r, r)
        folded = new.folded(out, channels * r * r)
        operands |= {f"{layer} {name}": vector for name, vector in folded.items()}

    def function(x: Tensor, residual: Tensor, **tensors: Tensor) -> Any:
        layers = {
            layer: chain.Folded(
                tensors[f"{layer} w"], tensors[f"{layer} bias"], tensors.get(f"{layer} scale")
            )
            for layer in shapes
        }
        residual_scale = 0.5 if int8 else None
        return chain.chain(
            x, residual=residual, stride=problem.conv.stride, residual_scale=residual_scale, **layers
        )

    return Call(function, operands)


_CALLS: dict[str, Callable[[Problem, _Operands], Call | None]] = {
    "fprop": _fprop,
    "dgrad": _dgrad,
    "wgrad": _wgrad,
    "chain": _chain,
}


@contextmanager
def _full_precision() -> Iterator[None]:
    """fp32 convolutions as they are, not in TF32."""
    cudnn = torch.backends.cudnn
    conv = getattr(cudnn, "conv", None)  # torch 2.9 and newer, which refuses to have both flags used
    holder, flag, off = (cudnn, "allow_tf32", False) if conv is None else (conv, "fp32_precision", "ieee")
    was = getattr(holder, flag)
    setattr(holder, flag, off)
    try:
        yield
    finally:
        setattr(holder, flag, was)

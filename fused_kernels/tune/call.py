"""A problem as a call of its operation on random tensors, to be verified and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    """One operation on its operands; ``choice.choosing`` decides which tile computes it."""

    function: Callable[..., Any]
    operands: tuple[Tensor, ...]
    moments: bool = False
    """Partial sums among the results are means and M2, not plain sums."""

    def run(self) -> list[Tensor]:
        """Run, and return the results with partial sums added up, so that they compare whatever the tile."""
        return list(self._tensors(self.function(*self.operands)))

    def launch(self) -> None:
        """Run, and drop the results."""
        self.function(*self.operands)

    def reference(self) -> list[Tensor]:
        """The results of plain PyTorch in the same dtypes."""
        with implementation("reference"):
            return self.run()

    def truth(self) -> list[Tensor]:
        """The results of plain PyTorch in fp32 from the same 16-bit operands; in fp64 from fp32 ones."""
        wide = torch.float64 if self.operands[0].dtype == torch.float32 else torch.float32
        wider = replace(self, operands=tuple(operand.to(wide) for operand in self.operands))
        with implementation("reference"), _full_precision():
            return wider.run()

    def _tensors(self, value: Any) -> Iterator[Tensor]:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Partials):
                with implementation("reference"):
                    yield from statistics.merge(item) if self.moments else statistics.sums(item)
            else:
                yield item


def call_of(problem: Problem, device: torch.device) -> Call:
    """Random operands for ``problem`` and the operation that poses it.

    A block's gradient is posed in its most common form: a shortcut of stride 1, no projection.

    Raises:
        Unsupported: no operation poses such a problem.
    """
    build = _BUILDERS[problem.kind].get(problem.epilogue)
    if build is None:
        raise Unsupported(
            f"no operation poses the problem {problem.key}: the tuning table is for another version"
        )
    return build(problem, _Operands(problem, device))


class _Operands:
    """Seeded random operands of a problem."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self._problem, self._device = problem, device
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(SEED)

    def normal(self, *shape: int) -> Tensor:
        """fp32."""
        return torch.randn(shape, generator=self._generator, device=self._device)

    def activation(self, n: int, c: int, h: int, w: int) -> Tensor:
        """[n, c, h, w] in NHWC memory; int8 over its whole range."""
        if self._problem.dtype == torch.int8:
            return nhwc(self._int8(n, c, h, w))
        return nhwc(self.normal(n, c, h, w).to(self._problem.dtype))

    def input(self) -> Tensor:
        """The convolution's input."""
        problem = self._problem
        return self.activation(problem.n, problem.c, problem.h, problem.w)

    def output(self) -> Tensor:
        """A tensor with the shape of the convolution's output."""
        problem = self._problem
        return self.activation(problem.n, problem.k, *problem.conv.output_size(problem.h, problem.w))

    def weight(self, channels: int | None = None) -> Tensor:
        """The weight of the problem's convolution, with ``channels`` input channels if given."""
        problem, conv = self._problem, self._problem.conv
        return self.weights(problem.k, problem.c if channels is None else channels, conv.r, conv.s)

    def weights(self, k: int, c: int, r: int, s: int) -> Tensor:
        """[k, c, r, s] in KRSC memory, scaled so that outputs are about 1."""
        if self._problem.dtype == torch.int8:
            return nhwc(self._int8(k, c, r, s))
        return nhwc((self.normal(k, c, r, s) * (c * r * s) ** -0.5).to(self._problem.dtype))

    def vectors(self, c: int) -> Tensor:
        """fp32 [4, c], the vectors of a batch norm: mean, invstd, scale, shift; scales of both signs."""
        mean, invstd, gamma, beta = self.normal(c), self.normal(c).abs() + 0.5, self.normal(c), self.normal(c)
        return torch.stack([mean, invstd, gamma * invstd, beta - mean * gamma * invstd])

    def requantization(self, products: int, channels: int | None = None) -> tuple[Tensor, Tensor]:
        """Scale and bias [k] or [channels] that spread sums of ``products`` over int8's range."""
        k = self._problem.k if channels is None else channels
        return (self.normal(k).abs() + 0.5) * 40 / (74**2 * products**0.5), self.normal(k) * 10

    def _int8(self, *shape: int) -> Tensor:
        return torch.randint(
            -127, 128, shape, generator=self._generator, device=self._device, dtype=torch.int8
        )


def _fprop(problem: Problem, new: _Operands) -> Call:
    conv = problem.conv
    function = convolution.conv_moments if problem.epilogue == "moments" else convolution.conv_plain
    vectors = () if problem.prologue == "identity" else (new.vectors(problem.c),)
    operands = (new.input(), new.weight(), *vectors)
    return Call(lambda x, w, *rest: function(x, w, conv, *rest), operands, problem.epilogue == "moments")


def _inference(problem: Problem, new: _Operands) -> Call:
    conv, relu = problem.conv, problem.epilogue != "bias"
    residual = (new.output(),) if problem.epilogue == "bias_residual_relu" else ()

    def function(x: Tensor, w: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return inference.conv_bias(x, w, bias, conv, relu=relu, residual=residual)

    return Call(function, (new.input(), new.weight(), new.normal(problem.k), *residual))


def _int8_inference(problem: Problem, new: _Operands) -> Call:
    conv, relu = problem.conv, problem.epilogue.endswith("_relu")
    residual = (new.output(),) if "residual" in problem.epilogue else ()

    def function(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        residual_scale = None if residual is None else 0.5
        return inference.conv_int8(
            x, w, scale, bias, conv, relu=relu, residual=residual, residual_scale=residual_scale
        )

    vectors = new.requantization(problem.c * conv.r * conv.s)
    return Call(function, (new.input(), new.weight(), *vectors, *residual))


def _logits(problem: Problem, new: _Operands) -> Call:
    w = new.weight().flatten(1)
    if problem.dtype != torch.int8:
        return Call(head.pool_fc, (new.input(), w, new.normal(problem.k)))
    return Call(
        lambda x, w, scale, bias: head.pool_fc_int8(x, 1.0, w, scale, bias),
        (new.input(), w, *new.requantization(problem.c)),
    )


def _dgrad(problem: Problem, new: _Operands) -> Call:
    conv, size = problem.conv, (problem.n, problem.c, problem.h, problem.w)
    shortcut = (new.input(),) if problem.epilogue == "shortcut" else ()

    def function(dy: Tensor, w: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return convolution.dgrad_shortcut(dy, w, conv, size, shortcut)

    return Call(function, (new.output(), new.weight(), *shortcut))


def _dgrad_drelu(problem: Problem, new: _Operands) -> Call:
    def function(dy: Tensor, w: Tensor, y: Tensor, vectors: Tensor) -> Any:
        return convolution.dgrad_drelu(dy, w, problem.conv, y, vectors)

    return Call(function, (new.output(), new.weight(), new.input(), new.vectors(problem.c)))


def _dgrad_block(problem: Problem, new: _Operands) -> Call:
    def function(dy: Tensor, w: Tensor, shortcut: Tensor, z: Tensor, y: Tensor, vectors: Tensor) -> Any:
        return convolution.dgrad_block(dy, w, problem.conv, shortcut, 1, z, y, vectors)

    shortcut, z, y = new.input(), new.input().relu_(), new.input()
    return Call(function, (new.output(), new.weight(), shortcut, z, y, new.vectors(problem.c)))


def _wgrad(problem: Problem, new: _Operands) -> Call:
    conv = problem.conv
    vectors = () if problem.prologue == "identity" else (new.vectors(problem.c),)
    return Call(
        lambda x, dy, *rest: convolution.wgrad(x, dy, conv, *rest), (new.input(), new.output(), *vectors)
    )


def _stem(problem: Problem, new: _Operands) -> Call:
    conv, pool = problem.conv, problem.epilogue == "stem_pool"
    image, w = new.activation(problem.n, 3, problem.h, problem.w), new.weight(3)
    if problem.epilogue == "stem_moments":
        return Call(lambda image, w: stem.stem_conv_moments(image, w, conv)[:2], (image, w), moments=True)
    if problem.epilogue == "stem_store":
        return Call(lambda image, w: stem.stem_conv(image, w, conv)[0], (image, w))
    vectors: tuple[Tensor, ...] = (new.normal(problem.k),)
    if problem.dtype == torch.int8:
        vectors = new.requantization(3 * conv.r * conv.s)[::-1]

    def function(image: Tensor, w: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
        return stem.stem_inference(image, w, bias, conv, pool=pool, scale=scale)

    return Call(function, (image, w, *vectors))


def _stem_wgrad(problem: Problem, new: _Operands) -> Call:
    conv = _STEM_WINDOWS[problem.c]
    image = new.activation(problem.n, 3, problem.h * conv.stride, problem.w * conv.stride)
    with implementation("reference"):
        packed = pack(image, conv, problem.dtype)
    return Call(lambda packed, dy: stem.stem_wgrad(packed, dy, conv, 3), (packed, new.output()))


def _chain(problem: Problem, new: _Operands) -> Call:
    c, k, stride = problem.c, problem.k, problem.conv.stride
    shapes = [(c, c, 3), (k, c, 1), *([(problem.following, k, 1)] if problem.following else [])]
    int8 = problem.dtype == torch.int8
    layers: list[Tensor] = []
    for out, depth_of, r in shapes:
        scale, bias = (
            new.requantization(depth_of * r * r, out) if int8 else (new.normal(out), new.normal(out))
        )
        layers += [new.weights(out, depth_of, r, r), bias, *([scale] if int8 else [])]

    def function(x: Tensor, residual: Tensor, *layers: Tensor) -> Any:
        each = len(layers) // len(shapes)
        folded = [chain.Folded(*layers[start : start + each]) for start in range(0, len(layers), each)]
        z, following = chain.chain(
            x,
            folded[0],
            folded[1],
            residual,
            *folded[2:],
            stride=stride,
            residual_scale=0.5 if int8 else None,
        )
        return z if following is None else (z, following)

    return Call(function, (new.input(), new.output(), *layers))


_BUILDERS: dict[str, dict[str, Callable[[Problem, _Operands], Call]]] = {
    "fprop": {
        **dict.fromkeys(("moments", "store"), _fprop),
        **dict.fromkeys(("bias", "bias_relu", "bias_residual_relu"), _inference),
        **dict.fromkeys(
            ("requantize", "requantize_relu", "requantize_residual", "requantize_residual_relu"),
            _int8_inference,
        ),
        "logits": _logits,
        **dict.fromkeys(("stem_moments", "stem_store", "stem_bias_relu", "stem_pool"), _stem),
    },
    "dgrad": {
        "drelu": _dgrad_drelu,
        "block_gradient": _dgrad_block,
        **dict.fromkeys(("shortcut", "store"), _dgrad),
    },
    "wgrad": {"store": _wgrad, "stem": _stem_wgrad},
    "chain": {"store": _chain},
}
"""The function that poses a problem, by the problem's kind and epilogue."""


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

"""Every inference operation of a bottleneck ResNet, at each of its distinct shapes, in 16 bits and in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu import torch_peers as peers
from benchmarks.gpu.layers import Layer, distinct_layers
from benchmarks.gpu.networks import Scale
from benchmarks.gpu.op_case import OpCase, Operands
from benchmarks.gpu.training_cases import STEM, OpSpec
from fused_kernels.ops import head, inference, stem
from fused_kernels.ops.chain import Folded, chain, chain_fits

OUTPUT_STEPS = 30.0
"""Standard deviation of an int8 result in its own steps: few values saturate, most use several bits."""


def inference_specs(scale: Scale, dtype: torch.dtype) -> list[OpSpec]:
    """Every distinct convolution with its epilogue, the stem, the chains and the head."""
    specs, known = [], set()
    for layer in distinct_layers(scale):
        # training tells more layers apart than inference does
        key = (layer.role, layer.c, layer.k, layer.h, layer.conv)
        if key not in known:
            known.add(key)
            specs.append(_conv_spec(layer, dtype))
    return [*specs, _stem_spec(scale, dtype), *_chain_specs(scale, dtype), _head_spec(scale, dtype)]


def requantizer(new: Operands, k: int, depth: int) -> tuple[Tensor, Tensor]:
    """fp32 scale and bias [k] that bring sums of ``depth`` products of random int8 to ``OUTPUT_STEPS``."""
    size = OUTPUT_STEPS / (73.5**2 * depth**0.5)  # 73.5: standard deviation of uniform int8
    return size * (0.75 + 0.5 * torch.rand(k, device=new.device)), 5 * new.normal(k)


def _conv_spec(layer: Layer, dtype: torch.dtype) -> OpSpec:
    def make(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        x = new.activation(n, layer.c, layer.h, relu=True)
        w = new.weight(layer.k, layer.c, layer.conv.r, layer.conv.s)
        relu = layer.role != "projection"
        residual = new.activation(n, layer.k, layer.p, relu=True) if layer.role == "conv3" else None
        flops = layer.flops(n)
        if dtype == torch.int8:
            scale, bias = requantizer(new, layer.k, layer.c * layer.conv.r**2)
            keywords = {
                "relu": relu,
                "residual": residual,
                "residual_scale": None if residual is None else 0.5,
            }
            return OpCase(inference.conv_int8, (x, w, scale, bias, layer.conv), keywords, flops)
        bias = new.normal(layer.k)
        return OpCase(
            inference.conv_bias,
            (x, w, bias, layer.conv),
            {"relu": relu, "residual": residual},
            flops,
            lambda: peers.inference_peers(x, w, bias, layer.conv, relu=relu, residual=residual),
        )

    return OpSpec(f"{layer.name} inference", dtype, make, layer.count)


def _stem_spec(scale: Scale, dtype: torch.dtype) -> OpSpec:
    k, p = scale.widths[0], STEM.output_size(scale.image, scale.image)[0]

    def make(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        x, w = new.activation(n, 3, scale.image), new.weight(k, 3, 7, 7)
        flops = 2.0 * n * p * p * k * 147
        if dtype == torch.int8:
            factor, bias = requantizer(new, k, 147)
            return OpCase(stem.stem_inference, (x, w, bias, STEM), {"scale": factor}, flops)
        bias = new.normal(k)
        return OpCase(stem.stem_inference, (x, w, bias, STEM), {}, flops)

    return OpSpec("stem inference", dtype, make)


def _folded(new: Operands, k: int, c: int, r: int) -> Folded:
    w = new.weight(k, c, r, r)
    if new.dtype != torch.int8:
        return Folded(w, new.normal(k))
    scale, bias = requantizer(new, k, c * r * r)
    return Folded(w, bias, scale)


def _chain_specs(scale: Scale, dtype: torch.dtype) -> list[OpSpec]:
    """A stage's first block, those in its middle, and its last one, whose chain runs no further convolution."""
    specs = []
    for stage, (width, blocks) in enumerate(zip(scale.widths, scale.blocks, strict=True), start=1):
        h = -(-scale.image // (2 << stage))
        forms: dict[str, tuple[int, int | None]] = {" end": (1, None)}
        if blocks > 1:
            forms[""] = (1, width)
        if stage > 1:
            forms[" /2"] = (2, width if blocks > 1 else None)
        for form, (stride, following) in forms.items():
            if chain_fits(width, dtype, following):
                name = f"layer{stage} chain{form}"
                specs.append(_chain_spec(name, width, following, h, stride, dtype))
    return specs


def _chain_spec(
    name: str, width: int, following: int | None, h: int, stride: int, dtype: torch.dtype
) -> OpSpec:
    def make(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        x = new.activation(n, width, h * stride, relu=True)
        conv2, conv3 = _folded(new, width, width, 3), _folded(new, 4 * width, width, 1)
        conv1 = None if following is None else _folded(new, following, 4 * width, 1)
        residual = new.activation(n, 4 * width, h, relu=True)
        keywords = {"stride": stride, "residual_scale": 0.5 if dtype == torch.int8 else None}
        products = 9 * width * width + 4 * width * width + 4 * width * (following or 0)
        flops = 2.0 * n * h * h * products
        return OpCase(chain, (x, conv2, conv3, residual, conv1), keywords, flops)

    return OpSpec(name, dtype, make)


def _head_spec(scale: Scale, dtype: torch.dtype) -> OpSpec:
    c, h = 4 * scale.widths[-1], -(-scale.image // (2 << len(scale.widths)))

    def make(n: int, device: torch.device) -> OpCase:
        new = Operands(device, dtype)
        x, w = new.activation(n, c, h, relu=True), new.weight(scale.classes, c, 1, 1).flatten(1)
        flops = 2.0 * n * c * scale.classes
        if dtype == torch.int8:
            scales = 1e-4 + 1e-5 * torch.rand(scale.classes, device=device)
            args = (x, 1.0 / (h * h), w, scales, new.normal(scale.classes))
            return OpCase(head.pool_fc_int8, args, {}, flops)
        return OpCase(head.pool_fc, (x, w, new.normal(scale.classes)), {}, flops)

    return OpSpec("head", dtype, make)

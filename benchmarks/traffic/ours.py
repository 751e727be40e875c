"""Bytes that the fused operators move: they run on meta tensors, where every launch is recorded and none happens.

The operations of PyTorch around the launches (casts of weights, sums of small vectors) count too, as ``PyTorch``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.traffic.footprint import (
    Bytes,
    bytes_of,
    finishes_block_backward,
    finishes_block_inference,
)
from benchmarks.traffic.shapes import EPS, BlockShape, ConvShape, NetworkShape, chain_of
from benchmarks.traffic.torch_ops import TorchOps
from fused_kernels.blocks import inference as blocks_inference
from fused_kernels.blocks import stem as stem_pass
from fused_kernels.blocks import training as blocks
from fused_kernels.blocks.batch_norm import Affine
from fused_kernels.launch import Launch, listening
from fused_kernels.operands.layout import nhwc
from fused_kernels.ops.head import pool_fc
from fused_kernels.ops.stem import stem_inference
from fused_kernels.specification import Layer

T = TypeVar("T")
TORCH = "PyTorch"


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory; four dimensions are laid out as NHWC."""
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    return nhwc(tensor) if len(shape) == 4 else tensor


class Recorder:
    """Bytes of each part of a pass; a launch that finishes a part closes it, and what follows belongs to the next."""

    def __init__(self, finishes: Callable[[Launch], bool]) -> None:
        self.finishes = finishes
        self.parts = [Bytes()]
        self._finished = False
        self._ops = TorchOps()
        self._counted = 0

    def run(self, function: Callable[[], T]) -> T:
        """Call ``function`` and count what it moves."""
        with listening(self._listen), self._ops:
            result = function()
        self._add_torch()
        return result

    def _listen(self, launch: Launch) -> None:
        if self._finished:
            self.parts.append(Bytes())
        self._finished = self.finishes(launch)
        self._add_torch()
        self.parts[-1].update(bytes_of(launch))

    def _add_torch(self) -> None:
        total = self._ops.bytes.total()
        self.parts[-1][TORCH] += total - self._counted
        self._counted = total


def never(_: Launch) -> bool:
    """Return False: no launch closes a part."""
    return False


def operators(network: NetworkShape) -> tuple[tuple[BlockShape, ...], ...]:
    """Blocks by the operator that runs them: ``FusedResNet`` makes one of them all while it is ``linked``."""
    return (network.blocks,)


def stage_training(stage: tuple[BlockShape, ...], n: int, dtype: torch.dtype) -> list[Bytes]:
    """Forward and backward of one stage, by block."""
    chain, first = chain_of(stage), stage[0].main[0]
    x = meta(n, first.c, first.h, first.w, dtype=dtype)
    layers, casts = _cast(stage, dtype)
    weights = [layer.weight for layer in layers]
    forward = Recorder(lambda launch: launch.kernel == "passes.join_kernel")
    saved, _ = forward.run(lambda: blocks.forward(x, layers, chain))
    backward = Recorder(finishes_block_backward)
    wanted = blocks.GradientRequest(True, (True,) * len(weights))
    dz = torch.empty_like(saved[-1].z)
    backward.run(lambda: blocks.backward(dz, x, weights, saved, chain, wanted))
    parts = zip(casts, forward.parts, reversed(backward.parts), strict=True)
    return [sum(part, Bytes()) for part in parts]


def _cast(stage: tuple[BlockShape, ...], dtype: torch.dtype) -> tuple[list[blocks.LayerTensors], list[Bytes]]:
    """Tensors of every layer with its weight cast, and what that moves, by block."""
    layers: list[blocks.LayerTensors] = []
    moved = []
    for block in stage:
        made, recorder = [tensors_of(layer) for layer in block.layers], Recorder(never)
        weights = recorder.run(partial(_to, [layer.weight for layer in made], dtype))
        layers += [replace(layer, weight=weight) for layer, weight in zip(made, weights, strict=True)]
        moved += recorder.parts
    return layers, moved


def _to(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors]


def stage_inference(stage: tuple[BlockShape, ...], n: int, dtype: torch.dtype) -> list[Bytes]:
    """Folded inference of one stage, by block; what a chain kernel computes of the next block counts in its own."""
    first = stage[0].main[0]
    x = meta(n, first.c, first.h, first.w, dtype=dtype)
    shapes = [layer for block in stage for layer in block.layers]
    weights = [meta(s.k, s.c, s.conv.r, s.conv.s, dtype=dtype) for s in shapes]
    biases = [meta(s.k) for s in shapes]
    recorder = Recorder(finishes_block_inference)
    recorder.run(lambda: blocks_inference.infer(x, weights, biases, chain_of(stage)))
    if len(recorder.parts) != len(stage):
        raise AssertionError(f"{len(stage)} blocks were run and {len(recorder.parts)} were seen to end")
    return recorder.parts


def stem_training(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Forward and backward of the stem, without a gradient for the image."""
    shape = network.stem
    image = meta(n, shape.c, shape.h, shape.w, dtype=dtype)
    layer, tensors = Layer(shape.conv, EPS, True, True, True), tensors_of(shape)
    recorder = Recorder(never)

    def both() -> None:
        cast = blocks.LayerTensors(tensors.weight.to(dtype), tensors.affine)
        saved, _ = stem_pass.forward(image, cast, layer, pool=True)
        dz = torch.empty_like(saved.z)
        stem_pass.backward(dz, image, cast.weight, saved, layer, blocks.GradientRequest(False, (True,)))

    recorder.run(both)
    return recorder.parts[0]


def stem_forward(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """The stem in inference."""
    shape = network.stem
    image = meta(n, shape.c, shape.h, shape.w, dtype=dtype)
    weight = meta(shape.k, shape.c, shape.conv.r, shape.conv.s, dtype=dtype)
    recorder = Recorder(never)
    recorder.run(lambda: stem_inference(image, weight, meta(shape.k), shape.conv))
    return recorder.parts[0]


def head_forward(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Global average pool and classifier in inference."""
    last = network.last
    x = meta(n, last.k, *last.plane, dtype=dtype)
    recorder = Recorder(never)
    recorder.run(lambda: pool_fc(x, meta(network.classes, last.k, dtype=dtype), meta(network.classes)))
    return recorder.parts[0]


def tensors_of(shape: ConvShape) -> blocks.LayerTensors:
    """fp32 weight and batch norm of a layer."""
    affine = Affine(meta(shape.k), meta(shape.k), (meta(shape.k), meta(shape.k)), 0.1)
    return blocks.LayerTensors(meta(shape.k, shape.c, shape.conv.r, shape.conv.s), affine)

"""Bytes that torch.compile moves, by a model of Inductor: cuDNN's convolutions and its own kernels between them.

Convolutions are cuDNN's as in eager; batch norm, ReLU and add become kernels that Inductor fuses up to each reduction.
Passes over a tensor, l any layer, L the last, d the projection's output:

    forward     fprop       x~_l + y_l          as in ``floors``
                statistics  y_l                 one pass
                apply       2 y_l    l < L      writes the activation that the next convolution and wgrad read
                join        3 y_L               reads y_L and x or d, writes z
    backward    sums of L   5 y_L               reads the next block's two gradients, z, y_L; writes their masked sum g
                dy_L        3 y_L               reads g and y_L
                sums of d   2 y_d
                dy_d        3 y_d
                sums of l   3 y_l    l < L      reads the gradient, the activation (its sign) and y_l
                dy_l        4 y_l               the same, and writes
                dgrad       y_l + x_l
                wgrad       x~_l + y_l
    stem        as a layer l < L; its max pool writes a byte of index for an element, its backward a full plane
    weights     read in fp32, written in 16 bits; dw written in 16 bits, read, written in fp32

Inference: each convolution, then one pass over its output (read, write; the last one also reads the shortcut).

The model is a little kind to Inductor. The schedule that torch 2.13 makes for a row of bottlenecks (its CPU scheduler,
asked for the buffers of each kernel) writes g in every other block alone and reads its four sources again elsewhere:
20 passes over y_L for two blocks where this model has 16.
"""

from __future__ import annotations

import torch

from benchmarks.traffic.floors import FP32
from benchmarks.traffic.footprint import Bytes
from benchmarks.traffic.shapes import BlockShape, ConvShape, NetworkShape


def block_training(block: BlockShape, after: BlockShape | None, n: int, dtype: torch.dtype) -> Bytes:
    """One block, forward and backward; ``after`` is the block that takes its output."""
    e, last, found = dtype.itemsize, block.main[-1], Bytes()
    for layer in block.layers:
        _layer(found, layer, n, dtype)
    inner = sum(layer.y for layer in block.main[:-1])
    projected = block.projection.y if block.projection else 0
    found["statistics"] = n * e * (inner + last.y + projected)
    found["apply"] = n * e * 2 * inner
    found["join"] = n * e * 3 * last.y
    incoming = 2 * last.y if after else last.k
    found["BN backward"] = n * e * (7 * inner + incoming + 6 * last.y + 5 * projected)
    return found


def _layer(found: Bytes, layer: ConvShape, n: int, dtype: torch.dtype, *, dgrad: bool = True) -> None:
    """Add one convolution's three products and its weight's casts."""
    e = dtype.itemsize
    found["fprop"] += n * e * (layer.x_touched + layer.y) + e * layer.weight
    found["wgrad"] += n * e * (layer.x_touched + layer.y) + e * layer.weight
    if dgrad:
        found["dgrad"] += n * e * (layer.x + layer.y) + e * layer.weight
    found["casts"] += casts(layer.weight, dtype)


def casts(weight: int, dtype: torch.dtype) -> int:
    """fp32 weights to 16 bits, and their gradients back."""
    return 0 if dtype == torch.float32 else 2 * (FP32 + dtype.itemsize) * weight


def stem_training(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """The stem, forward and backward, without a gradient for the image."""
    e, stem, pooled = dtype.itemsize, network.stem, network.pooled
    found = Bytes()
    _layer(found, stem, n, dtype, dgrad=False)
    found["statistics"] = n * e * stem.y
    found["apply"] = n * e * 2 * stem.y
    found["max pool"] = n * e * (stem.y + pooled) + n * pooled
    # the two gradients of the first block's input, the index, and the plane that they are gathered into
    found["max pool"] += n * e * (2 * pooled + stem.y) + n * pooled
    found["BN backward"] = n * e * 7 * stem.y
    return found


def head_training(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Global average pool and classifier; the pool's gradient is not expanded in memory."""
    e = dtype.itemsize
    weights = 3 * e * network.classifier + casts(network.classifier, dtype)
    return Bytes({"head": n * e * network.last.y + weights})


def block_inference(block: BlockShape, n: int, dtype: torch.dtype) -> Bytes:
    """One block in evaluation mode."""
    e, found = dtype.itemsize, Bytes()
    found["fprop"] = sum(n * e * (layer.x_touched + layer.y) + e * layer.weight for layer in block.layers)
    found["apply"] = n * e * (2 * sum(layer.y for layer in block.main) + block.main[-1].y)
    return found


def stem_inference(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Convolution, batch norm with ReLU, and max pool: three kernels."""
    e, stem = dtype.itemsize, network.stem
    return Bytes({"stem": n * e * (stem.x + 4 * stem.y + network.pooled) + e * stem.weight})


def head_inference(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Global average pool and classifier."""
    e = dtype.itemsize
    return Bytes({"head": n * e * (network.last.y + network.classes) + e * network.classifier})

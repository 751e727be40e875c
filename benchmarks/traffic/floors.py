"""Floors: what must move between memory and chip at the fusion levels that the project aims at, by formula.

In bytes of activations, where x, y, z, d are a block's tensors, the index counts its layers, L is the last, e is the
size of an element, and x~ are the pixels of x that a window meets (a quarter of x for a 1x1 of stride 2):

training ("fusedA": statistics in conv epilogues, BN + ReLU in prologues, sums in dgrad epilogues, one dy pass a conv)

    fprop       x~_l + y_l + w_l                           the activation between two layers is not stored
    join        y_L + (x or d) + z + mask                  mask: one bit for each element of z
    dy pass     3 y_l                                      reads g_l and y_l, writes dy_l
    wgrad       x~_l + y_l + 4 w_l / e                     fp32 dw
    dgrad       y_l + 2 x_l + w_l        l > 1             reads dy_l and y_{l-1}, writes g_{l-1}
                y_d + x~_d + w_d         projection        compact: only the pixels that it meets
                y_1 + (x or x~_d) + x + w_1                reads dy_1 and the shortcut's gradient, writes g
                + mask + y'_L (+ d')                       of the block before, whose ReLU and sums it takes along
    entry       mask + y_L + z           last block        its gradient comes from the pool: one vector an image

    stem        2 image + 6 y + 3 (pooled + its 1-byte index)     conv; pool; sums; dy pass (both gather from dz); wgrad
    update      20 bytes a parameter (weight, momentum and gradient read, weight and momentum written), e written

inference ("pool": every convolution with its whole epilogue, stem and max pool in one)

    x~_l + y_l + w_l, and the shortcut once for each block; image + pooled; z + classifier + fp32 logits

inference ("chain": a bottleneck's 3x3, its last 1x1 and the next block's first 1x1 are one kernel where the 3x3 has at
most 256 channels)

    pool less 2 y_2, and less z where another block follows, for each such block

Nothing is shared between kernels, and what one kernel reads again comes from the L2 cache.
"""

from __future__ import annotations

import torch

from benchmarks.traffic.footprint import Bytes
from benchmarks.traffic.shapes import BlockShape, NetworkShape

FP32 = 4
UPDATE = 5 * FP32
"""Bytes a parameter of SGD with momentum: reads weight, momentum and gradient, writes weight and momentum."""


CHAIN_WIDTH = 256
"""Channels of the widest 3x3 that the chain floor takes into one kernel with its neighbours."""


def block_training(block: BlockShape, before: BlockShape | None, n: int, dtype: torch.dtype) -> Bytes:
    """fusedA of one block; ``before`` is the block whose output it takes."""
    e = dtype.itemsize
    first, last, projection = block.main[0], block.main[-1], block.projection
    mask = last.y / 8
    shortcut = projection.x_touched if projection else first.x
    found = Bytes()
    found["fprop"] = sum(n * e * (layer.x_touched + layer.y) + e * layer.weight for layer in block.layers)
    found["join"] = round(n * (e * 3 * last.y + mask))
    found["dy pass"] = sum(n * e * 3 * layer.y for layer in block.layers)
    found["wgrad"] = sum(n * e * (layer.x_touched + layer.y) + FP32 * layer.weight for layer in block.layers)
    inner = sum(layer.y + 2 * layer.x for layer in block.main[1:])
    side = projection.y + projection.x_touched if projection else 0
    found["dgrad"] = n * e * (inner + side + first.y + shortcut + first.x) + e * block.weights
    if before is not None:
        tensors = 1 if before.projection is None else 2
        found["dgrad"] += round(n * (e * tensors * first.x + first.x / 8))
    return found


def entry(block: BlockShape, n: int, dtype: torch.dtype) -> Bytes:
    """The pass with which the backward of the network's last block begins."""
    y = block.main[-1].y
    return Bytes({"entry": round(n * (dtype.itemsize * 2 * y + y / 8))})


def stem_training(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """The stem, forward and backward."""
    e, shape = dtype.itemsize, network.stem
    activations = n * e * (2 * shape.x + 6 * shape.y) + 3 * n * (e + 1) * network.pooled
    return Bytes({"stem": activations + (e + FP32) * shape.weight})


def head_training(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Global average pool and classifier; all but the pool's read are vectors and the weight."""
    e = dtype.itemsize
    return Bytes({"head": n * e * network.last.y + (2 * e + FP32) * network.classifier})


def update(network: NetworkShape, dtype: torch.dtype) -> Bytes:
    """SGD with momentum in fp32, which also writes the weights in the dtype of the activations."""
    copy = 0 if dtype == torch.float32 else dtype.itemsize
    return Bytes({"update": (UPDATE + copy) * network.parameters})


def block_inference(block: BlockShape, n: int, dtype: torch.dtype) -> Bytes:
    """One block with batch norms folded in."""
    e = dtype.itemsize
    convolutions = sum(n * e * (layer.x_touched + layer.y) + e * layer.weight for layer in block.layers)
    return Bytes({"fprop": convolutions + n * e * block.main[-1].y})


def chain_saves(network: NetworkShape, n: int, dtype: torch.dtype) -> int:
    """Bytes that the chain floor is below the pool floor."""
    e, saved, blocks = dtype.itemsize, 0, network.blocks
    for index, block in enumerate(blocks):
        if len(block.main) == 3 and block.main[1].k <= CHAIN_WIDTH:
            saved += 2 * block.main[1].y
            saved += block.main[-1].y if index + 1 < len(blocks) else 0
    return n * e * saved


def stem_inference(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Image to the max pool's output in one kernel."""
    e, shape = dtype.itemsize, network.stem
    return Bytes({"stem": n * e * (shape.x + network.pooled) + e * shape.weight})


def head_inference(network: NetworkShape, n: int, dtype: torch.dtype) -> Bytes:
    """Global average pool and classifier to fp32 logits."""
    e = dtype.itemsize
    return Bytes({"head": n * e * network.last.y + e * network.classifier + n * FP32 * network.classes})

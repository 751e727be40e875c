"""Saved tensors of a chain as a flat list, which is what an operator of ``torch.library`` returns, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fused_kernels.blocks.training import SavedBlock, SavedLayer
from fused_kernels.specification import Chain, Layer


def pack(saved: Sequence[SavedBlock]) -> list[Tensor]:
    """The last block's output first, then every saved tensor in the order of the layers."""
    flat = [saved[-1].z]
    for index, block in enumerate(saved):
        for layer in (*block.main, *([] if block.projection is None else [block.projection])):
            flat += [layer.y, layer.vectors] if layer.total is None else [layer.y, layer.vectors, layer.total]
        if index < len(saved) - 1:
            flat.append(block.z)
    return flat


def packed_size(chain: Chain) -> int:
    """Length of the list that ``pack`` returns for this chain."""
    return len(chain.blocks) + sum(3 if _has_total(layer) else 2 for layer in chain.layers)


def unpack(flat: Sequence[Tensor], chain: Chain) -> list[SavedBlock]:
    """The inverse of ``pack``."""
    tensors = iter(flat)
    result = next(tensors)
    saved: list[SavedBlock] = []
    for index, block in enumerate(chain.blocks):
        main = tuple(_saved_layer(layer, tensors) for layer in block.main)
        projection = None if block.projection is None else _saved_layer(block.projection, tensors)
        z = result if index == len(chain.blocks) - 1 else next(tensors)
        saved.append(SavedBlock(main, projection, z))
    return saved


def _saved_layer(layer: Layer, tensors: Iterator[Tensor]) -> SavedLayer:
    y, vectors = next(tensors), next(tensors)
    return SavedLayer(y, vectors, next(tensors) if _has_total(layer) else None)


def _has_total(layer: Layer) -> bool:
    return layer.batch_statistics and layer.group is not None

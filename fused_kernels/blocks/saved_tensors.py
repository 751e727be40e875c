"""Saved tensors of a chain as the flat list that an operator of ``torch.library`` returns, and back."""

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
            tensors = (layer.y, layer.vectors, layer.total, layer.activation)
            flat += [tensor for tensor in tensors if tensor is not None]
        if index < len(saved) - 1:
            flat.append(block.z)
    return flat


def packed_size(chain: Chain) -> int:
    """Length of the list that ``pack`` returns for this chain."""
    written = sum(layer.materialize for layer in chain.layers)
    return len(chain.blocks) + written + sum(3 if _has_total(layer) else 2 for layer in chain.layers)


def unpack(flat: Sequence[Tensor], chain: Chain) -> list[SavedBlock]:
    """The inverse of ``pack``."""
    tensors = iter(flat)
    result = next(tensors)
    saved: list[SavedBlock] = []
    for index, block in enumerate(chain.blocks):
        followed = (*(layer.materialize for layer in block.main[1:]), False)
        main = tuple(
            _saved_layer(layer, tensors, activated=activated)
            for layer, activated in zip(block.main, followed, strict=True)
        )
        projection = None if block.projection is None else _saved_layer(block.projection, tensors)
        z = result if index == len(chain.blocks) - 1 else next(tensors)
        saved.append(SavedBlock(main, projection, z))
    return saved


def _saved_layer(layer: Layer, tensors: Iterator[Tensor], *, activated: bool = False) -> SavedLayer:
    y, vectors = next(tensors), next(tensors)
    total = next(tensors) if _has_total(layer) else None
    return SavedLayer(y, vectors, total, next(tensors) if activated else None)


def _has_total(layer: Layer) -> bool:
    return layer.batch_statistics and layer.group is not None

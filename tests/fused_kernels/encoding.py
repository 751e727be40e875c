"""The text of a chain of blocks, as ``fused_kernels.specification.decode`` reads it."""

from __future__ import annotations

from fused_kernels.specification import Block, Chain, Layer, block_text, layer_text


def encode(chain: Chain) -> str:
    """The inverse of ``decode``."""
    return ";".join(map(_block, chain.blocks))


def _block(block: Block) -> str:
    return block_text([_layer(layer) for layer in block.layers], block.shortcut, block.stride, block.pad)


def _layer(layer: Layer) -> str:
    flags = (
        ("b" * layer.batch_statistics)
        + ("t" * layer.tracked)
        + ("u" * layer.updates)
        + ("m" * layer.materialize)
    )
    return layer_text(layer.conv, layer.eps, flags, layer.group)

"""Finds the block of a node or tensor by its name, which needs no graph."""

from __future__ import annotations

import re

from rescompile.graph.shared.names import INPUT, OUTPUT, PIXELS

_BLOCK = re.compile(r"(?:net\d+\.)?(?:layer\d+\.\d+|(?:stem|join|head|unit)\d*)(?=\.|$)")
_STEM = (INPUT, "conv1", "relu1", "maxpool", PIXELS, "preprocess")
_HEAD = ("avgpool", "flatten", "fc", OUTPUT)


def named_block(name: str) -> str | None:
    """The block of the node that ``name`` is or begins with, as ``block_outputs`` calls it; None for other names."""
    if found := _BLOCK.match(name):
        return found[0]
    if name.startswith(_HEAD):
        return "fc"
    return "stem" if name.startswith(_STEM) else None


def block_of(node: str) -> str:
    """The block of a node or tensor of one of our graphs; all in front of the residual blocks is the stem."""
    return named_block(node) or "stem"

"""Blocks of any network of images, found in its graph, and names for its nodes and tensors by block.

Only the structure is read, never the exporter's names: residual additions and the paths that meet in them. Every node
is named after its block and its role there (``layer3.22.conv2``, ``head1.fc1``), and every tensor after the node that
makes it. So the block of a node can be read from its name in every graph that is made from this one; which tensors
blocks end in is kept in the model's metadata.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import MOVEMENT_OPS
from rescompile.graph.shared.metadata import set_block_ends
from rescompile.graph.structure.blocks import Block, Tree, block_tree
from rescompile.graph.structure.flow import Flow
from rescompile.graph.structure.naming import name_blocks, name_nodes, name_tensors


@dataclass(frozen=True)
class ResNetForm:
    """The form of a post-activation ResNet, which the paper's table of depths describes."""

    blocks_per_stage: tuple[int, ...]
    convs_per_block: int
    has_maxpool: bool
    option_a: bool
    width: int
    """Channels of the stem."""
    plain_width: bool
    """Whether the branches are as wide as the paper's, ungrouped and not dilated."""

    @property
    def depth(self) -> int:
        """Number of layers as in the paper: stem, convolutions of the branches, classifier."""
        return 2 + self.convs_per_block * sum(self.blocks_per_stage)


@dataclass(frozen=True)
class Structure:
    """The blocks of a network."""

    residual_adds: int
    blocks: dict[str, str]
    """Block name to the tensor that it ends in, in the order of execution."""
    form: ResNetForm | None
    """None where the network is not one of the paper's family."""
    origins: dict[str, str]
    """Tensor name to the name that it had before."""


def structure(model: onnx.ModelProto, outputs: tuple[str, ...] = ()) -> tuple[onnx.ModelProto, Structure]:
    """``model`` with names by block, and its structure.

    ``outputs`` are names for several outputs, by position; a single one is ``logits``.

    Raises:
        GraphError: two outputs have one name.
    """
    graph = read(model)
    tree = block_tree(Flow(graph))
    name_blocks(tree)
    form = _form(tree)
    before = {id(tensor): name for name, tensor in graph.tensors().items()}
    name_nodes(tree)
    kept = name_tensors(graph, outputs)
    ends = {block.name: tree.flow.nodes[block.last].outputs[0].name for block in tree.blocks}
    origins = {name: before[id(tensor)] for name, tensor in kept.items() if id(tensor) in before}
    named = write(graph)
    if form is None:
        set_block_ends(named, ends)
    return named, Structure(len(tree.residual), ends, form, origins)


def _form(tree: Tree) -> ResNetForm | None:
    nodes, residual = tree.flow.nodes, tree.residual
    stem, head = ([nodes[i].op for i in tree.blocks[place].nodes] for place in (0, -1))
    plain_ends = stem in (["Conv", "Relu"], ["Conv", "Relu", "MaxPool"]) and head == [
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    ]
    convs = {sum(nodes[index].op == "Conv" for index in block.branch) for block in residual}
    if not plain_ends or len(tree.blocks) != len(residual) + 2 or len(tree.flow.outputs) != 1:
        return None
    if len(convs) != 1 or not convs <= {2, 3} or not all(_is_plain(tree, block) for block in residual):
        return None
    first = next(nodes[index] for index in tree.blocks[0].nodes if nodes[index].op == "Conv")
    width, stages = int(first.inputs[1].shape[0]), Counter(block.stage for block in residual)
    return ResNetForm(
        blocks_per_stage=tuple(stages.values()),
        convs_per_block=next(iter(convs)),
        has_maxpool="MaxPool" in stem,
        option_a=any(nodes[index].op in MOVEMENT_OPS for block in residual for index in block.skip),
        width=width,
        plain_width=all(_is_as_wide(tree, block, width * 2 ** (block.stage - 1)) for block in residual),
    )


def _is_plain(tree: Tree, block: Block) -> bool:
    """Whether ``block`` has convolutions with ReLUs between them, a usual shortcut, and a ReLU behind its addition."""
    nodes = tree.flow.nodes
    branch, skip = ([nodes[index].op for index in sorted(side)] for side in (block.branch, block.skip))
    moves = set(skip) <= set(MOVEMENT_OPS) and skip.count("Pad") == 1
    return (
        branch == ["Conv", "Relu"] * (branch.count("Conv") - 1) + ["Conv"]
        and (skip in ([], ["Conv"]) or moves)
        and [nodes[index].op for index in block.tail] == ["Relu"]
        and len(block.nodes) == len(branch) + len(skip) + 2
    )


def _is_as_wide(tree: Tree, block: Block, width: int) -> bool:
    """Whether the branch begins with ``width`` channels, and its convolutions are ungrouped and not dilated."""
    convs = [node for index in sorted(block.branch) if (node := tree.flow.nodes[index]).op == "Conv"]
    usual = all(
        node.attrs.get("group", 1) == 1 and set(node.attrs.get("dilations", [1])) == {1} for node in convs
    )
    return usual and bool(convs[0].inputs[1].shape[0] == width)

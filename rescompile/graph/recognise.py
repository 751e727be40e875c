"""Finding the residual blocks of a simplified foreign graph and giving everything its canonical name.

Only the structure is read, never the exporter's names: an Add joins two chains of single-input layers; where they
meet is the block's input; the chain with more convolutions is the branch, the other one the shortcut. A shortcut
that is not the identity begins a new stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.surgeon import read, write
from rescompile.graph.topology import MOVEMENT_OPS
from rescompile.graph.vocabulary import INPUT, OUTPUT


@dataclass(frozen=True)
class Structure:
    """What the graph turned out to be."""

    blocks_per_stage: tuple[int, ...]
    convs_per_block: int
    has_maxpool: bool
    option_a: bool
    image_size: int
    classes: int

    @property
    def depth(self) -> int:
        """Layers as in the paper: stem, convolutions of the branches, classifier."""
        return 2 + self.convs_per_block * sum(self.blocks_per_stage)


@dataclass(frozen=True)
class _Block:
    branch: list[gs.Node]
    shortcut: list[gs.Node]
    add: gs.Node
    relu: gs.Node


def recognise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Structure]:
    """``model`` with canonical names, and its structure.

    Raises:
        GraphError: the graph is no post-activation ResNet; the message names the node where it departs.
    """
    graph = read(model)
    adds = [node for node in graph.nodes if node.op == "Add"]
    if not adds:
        raise GraphError("the graph has no residual add, so it is no ResNet")
    blocks = [_read_block(add) for add in adds]
    stem = _chain_above(blocks[0].branch[0].inputs[0])
    tail = _chain_below(blocks[-1].relu)
    stages = _stages(blocks)
    _name_stem(stem)
    _name_tail(tail)
    for (stage, index), block in zip(stages, blocks, strict=True):
        _name_block(block, f"layer{stage}.{index}")
    _name_tensors(graph)
    structure = Structure(
        blocks_per_stage=tuple(
            sum(1 for s, _ in stages if s == stage) for stage in range(1, stages[-1][0] + 1)
        ),
        convs_per_block=sum(node.op == "Conv" for node in blocks[0].branch),
        has_maxpool=any(node.op == "MaxPool" for node in stem),
        option_a=any(node.op in MOVEMENT_OPS for block in blocks for node in block.shortcut),
        image_size=int(graph.inputs[0].shape[2]),
        classes=int(tail[-1].inputs[1].shape[0]),
    )
    return write(graph), structure


def _chain_above(tensor: gs.Tensor) -> list[gs.Node]:
    """Nodes that lead to ``tensor``, first one first, back to the graph's input or a residual add (excluded)."""
    chain: list[gs.Node] = []
    while tensor.inputs and tensor.inputs[0].op != "Add":
        chain.append(tensor.inputs[0])
        tensor = tensor.inputs[0].inputs[0]
    return chain[::-1]


def _chain_below(node: gs.Node) -> list[gs.Node]:
    chain: list[gs.Node] = []
    while node.outputs[0].outputs:
        node = node.outputs[0].outputs[0]
        chain.append(node)
    return chain


def _read_block(add: gs.Node) -> _Block:
    first, second = (_chain_above(tensor) for tensor in add.inputs)
    shared = {id(node) for node in first} & {id(node) for node in second}
    sides = [[node for node in chain if id(node) not in shared] for chain in (first, second)]
    convs = [sum(node.op == "Conv" for node in side) for side in sides]
    if convs[0] == convs[1]:
        raise GraphError(
            f"'{add.name}' adds two chains of {convs[0]} convolutions; one of them must be a shortcut"
        )
    branch, shortcut = (sides[0], sides[1]) if convs[0] > convs[1] else (sides[1], sides[0])
    if min(convs) > 1 or max(convs) not in (2, 3):
        raise GraphError(
            f"'{add.name}' adds {max(convs)} convolutions to a shortcut of {min(convs)}; a ResNet block has 2 or 3, "
            "and at most one in its shortcut"
        )
    _check_order(branch, "Conv Relu " * (max(convs) - 1) + "Conv", add)
    if shortcut:
        _check_order(shortcut, "Conv" if min(convs) else "Slice Pad", add)
    users = add.outputs[0].outputs
    if len(users) != 1 or users[0].op != "Relu":
        raise GraphError(
            f"'{add.name}' is not followed by a ReLU alone; rescompile takes post-activation ResNets"
        )
    return _Block(branch, shortcut, add, users[0])


def _check_order(nodes: list[gs.Node], expected: str, add: gs.Node) -> None:
    found = [node.op for node in nodes if node.op != "BatchNormalization"]
    wanted = expected.split()
    # an option A shortcut may be written as two slices, or as a pad alone where the size stays
    if "Pad" in wanted and found and set(found) <= set(MOVEMENT_OPS) and found.count("Pad") == 1:
        return
    if found != wanted:
        raise GraphError(
            f"a chain into '{add.name}' reads {' '.join(found) or 'nothing'}, a ResNet block has {' '.join(wanted)}: "
            "this variant is not supported"
        )


def _stages(blocks: list[_Block]) -> list[tuple[int, int]]:
    stage, index, numbers = 1, 0, []
    for position, block in enumerate(blocks):
        if block.shortcut and position > 0:
            stage, index = stage + 1, 0
        numbers.append((stage, index))
        index += 1
    return numbers


def _name_stem(stem: list[gs.Node]) -> None:
    found = [node.op for node in stem if node.op != "BatchNormalization"]
    if found not in (["Conv", "Relu"], ["Conv", "Relu", "MaxPool"]):
        raise GraphError(
            f"the stem reads {' '.join(found)}, a ResNet has Conv Relu (MaxPool): this variant is not supported"
        )
    names = {"Conv": "conv1", "BatchNormalization": "bn1", "Relu": "relu1", "MaxPool": "maxpool"}
    for node in stem:
        node.name = names[node.op]


def _name_tail(tail: list[gs.Node]) -> None:
    found = [node.op for node in tail]
    if found != ["GlobalAveragePool", "Flatten", "Gemm"]:
        raise GraphError(
            f"the tail reads {' '.join(found)}; a ResNet ends in a global average pool and one classifier"
        )
    for node, name in zip(tail, ("avgpool", "flatten", "fc"), strict=True):
        node.name = name


def _name_block(block: _Block, name: str) -> None:
    counts = {"Conv": 0, "BatchNormalization": 0, "Relu": 0}
    short = {"Conv": "conv", "BatchNormalization": "bn", "Relu": "relu"}
    for node in block.branch:
        counts[node.op] += 1
        node.name = f"{name}.{short[node.op]}{counts[node.op]}"
    shortcut_names = {"Conv": "downsample", "BatchNormalization": "downsample.bn", "Pad": "shortcut"}
    slices = 0
    for node in block.shortcut:
        if node.op == "Slice":
            slices += 1
            node.name = f"{name}.slice{slices}"
        else:
            node.name = f"{name}.{shortcut_names[node.op]}"
    block.add.name, block.relu.name = f"{name}.add", f"{name}.relu"


def _name_tensors(graph: gs.Graph) -> None:
    """Tensors take the names of the nodes that make them, parameters those of the nodes that use them."""
    roles = {
        "Conv": ("weight", "bias"),
        "Gemm": ("weight", "bias"),
        "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
        "Slice": ("starts", "ends", "axes", "steps"),
        "Pad": ("pads", "value"),
    }
    for node in graph.nodes:
        node.outputs[0].name = node.name
        for position, role in enumerate(roles.get(node.op, ()), start=1):
            if position < len(node.inputs) and isinstance(node.inputs[position], gs.Constant):
                # a copy, because exporters share equal constants between nodes
                node.inputs[position] = gs.Constant(f"{node.name}.{role}", node.inputs[position].values)
    _name_ends(graph)


def _name_ends(graph: gs.Graph) -> None:
    """Ends get their names and a free batch size; shapes in between were the exporter's and may name another."""
    x, logits = graph.inputs[0], graph.outputs[0]
    classes = int(logits.inputs[0].inputs[1].shape[0])
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor is not x:
            tensor.shape = None
    x.name, x.dtype, x.shape = INPUT, np.float32, ["N", 3, *x.shape[2:]]
    logits.name, logits.dtype, logits.shape = OUTPUT, np.float32, ["N", classes]

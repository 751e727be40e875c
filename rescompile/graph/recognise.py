"""Residual blocks found in a simplified graph of another exporter, and canonical names for all nodes and tensors.

Only the structure is read, never the exporter's names. An Add joins two chains of single-input layers, which part at
the block's input. The chain with more convolutions is the branch, the other one the shortcut. A shortcut that is not
the identity begins a new stage.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import MOVEMENT_OPS, made_by
from rescompile.graph.shared.names import INPUT, OUTPUT


@dataclass(frozen=True)
class Structure:
    """The kind of ResNet that the graph holds."""

    blocks_per_stage: tuple[int, ...]
    convs_per_block: int
    has_maxpool: bool
    option_a: bool
    image_size: int
    classes: int

    @property
    def depth(self) -> int:
        """Number of layers as in the paper: stem, convolutions of the branches, classifier."""
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
        GraphError: the graph is not a post-activation ResNet; the message names the node that differs.
    """
    graph = read(model)
    adds = [node for node in graph.nodes if node.op == "Add"]
    if not adds:
        raise GraphError("the graph has no residual add, so it is not a ResNet")
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
        blocks_per_stage=tuple(Counter(stage for stage, _ in stages).values()),
        convs_per_block=sum(node.op == "Conv" for node in blocks[0].branch),
        has_maxpool=any(node.op == "MaxPool" for node in stem),
        option_a=any(node.op in MOVEMENT_OPS for block in blocks for node in block.shortcut),
        image_size=int(graph.inputs[0].shape[2]),
        classes=int(tail[-1].inputs[1].shape[0]),
    )
    return write(graph), structure


def _chain_above(tensor: gs.Tensor) -> list[gs.Node]:
    """Nodes from the graph's input or the last residual add (excluded) to ``tensor``, in the order of execution."""
    chain: list[gs.Node] = []
    while made_by(tensor) not in ("", "Add"):
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
            f"a chain into '{add.name}' consists of {' '.join(found) or 'nothing'}, a ResNet block has "
            f"{' '.join(wanted)}: this variant is not supported"
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
            f"the stem is {' '.join(found)}, a ResNet has Conv Relu (MaxPool): this variant is not supported"
        )
    names = {"Conv": "conv1", "BatchNormalization": "bn1", "Relu": "relu1", "MaxPool": "maxpool"}
    for node in stem:
        node.name = names[node.op]


def _name_tail(tail: list[gs.Node]) -> None:
    found = [node.op for node in tail]
    if found != ["GlobalAveragePool", "Flatten", "Gemm"]:
        raise GraphError(
            f"the tail is {' '.join(found)}; a ResNet ends in a global average pool and one classifier"
        )
    for node, name in zip(tail, ("avgpool", "flatten", "fc"), strict=True):
        node.name = name


def _name_block(block: _Block, name: str) -> None:
    numbered = {"Conv": "conv", "BatchNormalization": "bn", "Relu": "relu"}
    plain = {"Conv": "downsample", "BatchNormalization": "downsample.bn", "Pad": "shortcut"}
    counts: Counter[str] = Counter()
    for node in block.branch:
        counts[node.op] += 1
        node.name = f"{name}.{numbered[node.op]}{counts[node.op]}"
    for node in block.shortcut:
        counts[node.op] += 1
        node.name = f"{name}.{plain.get(node.op) or f'slice{counts[node.op]}'}"
    block.add.name, block.relu.name = f"{name}.add", f"{name}.relu"


def _name_tensors(graph: gs.Graph) -> None:
    """Name tensors after the nodes that make them, and parameters after the nodes that use them."""
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
    """Name input and output, free their batch size, and drop the exporter's shapes, which may fix it, in between."""
    x, logits = graph.inputs[0], graph.outputs[0]
    classes = int(logits.inputs[0].inputs[1].shape[0])
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor is not x:
            tensor.shape = None
    x.name, x.dtype, x.shape = INPUT, np.float32, ["N", 3, *x.shape[2:]]
    logits.name, logits.dtype, logits.shape = OUTPUT, np.float32, ["N", classes]

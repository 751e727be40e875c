"""Names for blocks, nodes and tensors."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.shared.links import WEIGHTED_OPS
from rescompile.graph.shared.names import INPUT, OUTPUT, SHAPES
from rescompile.graph.structure.blocks import Block, Tree
from rescompile.graph.structure.flow import INPUT as START

_ROLES = {
    "Conv": "conv", "Gemm": "fc", "BatchNormalization": "bn", "GlobalAveragePool": "avgpool", "Add": "sum",
    "AveragePool": "pool",
}  # fmt: skip
_PLAIN_ROLES = {
    "stem": {
        ("Conv", "Relu"): ("conv1", "relu1"),
        ("Conv", "Relu", "MaxPool"): ("conv1", "relu1", "maxpool"),
    },
    "fc": {
        ("GlobalAveragePool", "Flatten", "Gemm"): ("avgpool", "flatten", "fc"),
        ("GlobalAveragePool", "Flatten"): ("avgpool", "flatten"),
        ("GlobalAveragePool",): ("avgpool",),
    },
}
"""Stems and heads of the paper's networks have short names, without their block's."""
_SKIP_ROLES = {"Conv": "downsample", "Pad": "shortcut", "BatchNormalization": "downsample.bn"}
_PARAMETERS = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "Gemm": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Pad": ("pads", "value", "axes"),
    "Reshape": ("shape",),
}


def name_blocks(tree: Tree) -> None:
    """Number the blocks: stages within each chain of residual blocks, everything else by its kind."""
    trunks = _trunks(tree)
    stages: dict[int, int] = defaultdict(lambda: 1)
    places: dict[int, int] = defaultdict(int)
    count: Counter[str] = Counter()
    heads = [block for block in tree.blocks if block.kind == "head"]
    for block in tree.blocks:
        prefix = f"net{block.trunk}." if trunks > 1 else ""
        if block.kind in ("residual", "chain"):
            if block.changes_shape and places[block.trunk]:
                stages[block.trunk] += 1
                places[block.trunk] = 0
            block.stage = stages[block.trunk]
            block.name = f"{prefix}layer{block.stage}.{places[block.trunk]}"
            places[block.trunk] += 1
            continue
        key = f"{prefix}{block.kind}" if block.kind == "stem" else block.kind
        count[key] += 1
        block.name = f"{key}{count[key]}"
        if block.kind == "stem" and count[key] == 1:
            block.name = key
        if block.kind == "head" and len(heads) == 1:
            block.name = "fc"


def _trunks(tree: Tree) -> int:
    """Number the chains of residual blocks that no path joins; returns how many there are."""
    found = 0
    for block in tree.blocks:
        if block.kind in ("residual", "chain"):
            before = _ancestor(tree, block)
            if before is None:
                found += 1
            block.trunk = found if before is None else before.trunk
    for block in tree.blocks:
        if block.kind == "stem":
            readers = [tree.owner[r] for i in block.nodes for r in tree.flow.behind[i] if r in tree.owner]
            block.trunk = next((reader.trunk for reader in readers if reader.kind == "residual"), 1)
    return found


def _ancestor(tree: Tree, block: Block) -> Block | None:
    """The nearest residual block or chain that ``block`` is made of."""
    todo, seen, best = list(block.nodes), set[int](), None
    while todo:
        index = todo.pop()
        if index == START or index in seen:
            continue
        seen.add(index)
        owner = tree.owner.get(index)
        if owner is not None and owner is not block and owner.kind in ("residual", "chain"):
            if best is None or owner.nodes[-1] > best.nodes[-1]:
                best = owner
            continue
        todo += tree.flow.before[index]
    return best


def name_nodes(tree: Tree) -> None:
    """Name every node after its block and its role there."""
    for block in tree.blocks:
        ops = tuple(tree.flow.nodes[index].op for index in block.nodes)
        short = _PLAIN_ROLES.get(block.name, {}).get(ops)
        for index, role in zip(block.nodes, short or _roles(tree, block), strict=True):
            tree.flow.nodes[index].name = role if short else f"{block.name}.{role}"
    loose = [node for index, node in enumerate(tree.flow.nodes) if index not in tree.owner]
    for number, node in enumerate(loose, 1):
        node.name = f"{SHAPES}{node.op.lower()}{number}"


def _roles(tree: Tree, block: Block) -> list[str]:
    flow, count, roles = tree.flow, Counter[str](), list[str]()
    for index in block.nodes:
        op = flow.nodes[index].op
        if index == block.add:
            roles.append("add")
        elif index in block.tail and op == "Relu" and index == block.tail[0]:
            roles.append("relu")
        else:
            role = _ROLES.get(op, op.lower())
            if index in flow.gates and op in WEIGHTED_OPS:
                role = "gate"
            elif index in block.skip:
                role = _SKIP_ROLES.get(op, role if op == "Slice" else f"downsample.{role}")
            count[role] += 1
            numbered = role not in _SKIP_ROLES.values() or count[role] > 1
            roles.append(f"{role}{count[role]}" if numbered else role)
    return roles


def name_tensors(graph: gs.Graph, outputs: tuple[str, ...]) -> dict[str, gs.Tensor]:
    """Name tensors after the nodes that make them, and parameters after the nodes that use them.

    Returns the tensors that nodes make, by name; the exporter's sizes, which may fix a batch, are forgotten.
    """
    made: dict[str, gs.Tensor] = {}
    for node in graph.nodes:
        for position, tensor in enumerate(node.outputs):
            if tensor.name:
                tensor.name = node.name if not position else f"{node.name}.{position}"
                made[tensor.name] = tensor
        roles = _PARAMETERS.get(node.op, ())
        for position, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                role = roles[position - 1] if 0 < position <= len(roles) else f"constant{position}"
                # a copy, because exporters share equal constants between nodes
                node.inputs[position] = gs.Constant(f"{node.name}.{role}", tensor.values)
    _name_ends(graph, outputs)
    return {tensor.name: tensor for tensor in made.values()}


def _name_ends(graph: gs.Graph, outputs: tuple[str, ...]) -> None:
    image = graph.inputs[0]
    shapes = [output.shape for output in graph.outputs]
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and tensor is not image:
            tensor.shape = None
    image.name, image.dtype, image.shape = INPUT, np.float32, ["N", *image.shape[1:]]
    if len(graph.outputs) == 1:
        graph.outputs[0].name = OUTPUT
    else:
        _copy_outputs(graph, outputs or tuple(f"output{number}" for number in range(len(shapes))))
    for output, shape in zip(graph.outputs, shapes, strict=True):
        output.dtype, output.shape = np.float32, None if shape is None else ["N", *shape[1:]]


def _copy_outputs(graph: gs.Graph, names: tuple[str, ...]) -> None:
    """Let several outputs have the user's names, while the tensors inside keep those of their blocks."""
    if len(set(names)) != len(names):
        raise GraphError(f"the graph has outputs of the same name ({', '.join(names)}): give each its own")
    inner = {node.name for node in graph.nodes}
    copies = []
    for tensor, given in zip(graph.outputs, names, strict=True):
        name = f"output.{given}" if given in inner or given == INPUT else given
        copies.append(copy := gs.Variable(name, np.float32))
        graph.nodes.append(gs.Node("Identity", name, {}, [tensor], [copy]))
    graph.outputs = copies

"""The blocks of a network: residual additions with their two paths, and what lies in front, between and behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rescompile.graph.shared.links import WEIGHTED_OPS
from rescompile.graph.structure.flow import INPUT, Flow

ACTIVATIONS = (
    "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Gelu",
    "Tanh", "Softplus", "Mish",
)  # fmt: skip
Kind = Literal["residual", "chain", "join", "stem", "head", "unit"]


@dataclass(eq=False)
class Block:
    """A part of the network; the numbers are those of ``Flow``."""

    kind: Kind
    nodes: list[int]
    branch: set[int] = field(default_factory=set)
    skip: set[int] = field(default_factory=set)
    add: int = INPUT
    tail: list[int] = field(default_factory=list)
    """The activations behind the addition."""
    name: str = ""
    trunk: int = 1
    stage: int = 0
    last: int = INPUT
    """The node that makes what later blocks read."""

    @property
    def changes_shape(self) -> bool:
        """Whether the shortcut is not the identity, or there is none: such a block opens a stage."""
        return self.kind == "chain" or bool(self.skip)


@dataclass(eq=False)
class Tree:
    """All blocks in the order of execution."""

    flow: Flow
    blocks: list[Block]
    owner: dict[int, Block]

    @property
    def residual(self) -> list[Block]:
        """The residual blocks."""
        return [block for block in self.blocks if block.kind == "residual"]

    def weights(self, block: Block) -> int:
        """Number of convolutions and linear layers of ``block``."""
        return sum(self.flow.nodes[index].op in (*WEIGHTED_OPS, "ConvTranspose") for index in block.nodes)

    def put(self, nodes: Iterable[int], block: Block) -> None:
        """Let ``nodes`` belong to ``block``."""
        block.nodes = sorted({*block.nodes, *nodes})
        self.owner.update(dict.fromkeys(nodes, block))


def block_tree(flow: Flow) -> Tree:
    """The blocks of the network, without names; every node that carries data belongs to one."""
    tree = Tree(flow, [], {})
    for block in _residual_blocks(flow):
        tree.blocks.append(block)
        for index in block.nodes:
            tree.owner.setdefault(index, block)
    for block in tree.blocks:
        block.nodes = [index for index in block.nodes if tree.owner[index] is block]
    _add_stems_and_chains(tree)
    _add_heads_and_units(tree)
    tree.blocks.sort(key=lambda block: block.nodes[-1])
    for block in tree.blocks:
        own = set(block.nodes)
        exits = [i for i in block.nodes if i in flow.outputs or not own.issuperset(flow.behind[i])]
        block.last = exits[-1] if exits else block.nodes[-1]
    return tree


def _residual_blocks(flow: Flow) -> list[Block]:
    found = {index: block for index in range(len(flow.nodes)) if (block := _residual_block(flow, index))}
    joins = {
        index
        for index, block in found.items()
        if any(inner in found and inner != index and _ends_in(flow, block, inner) for inner in block.branch)
    }
    outer = {index: block for index, block in found.items() if index not in joins}
    nested = {
        inner
        for index, block in outer.items()
        for inner in (block.branch | block.skip)
        if inner in outer and inner != index
    }
    return [block for index, block in outer.items() if index not in nested]


def _ends_in(flow: Flow, block: Block, inner: int) -> bool:
    """Whether all of ``block``'s branch passes the addition ``inner``: then ``block`` joins two larger parts."""
    end = max(index for index in flow.before[block.add] if index in block.branch)
    return flow.dominates(inner, end)


def _residual_block(flow: Flow, add: int) -> Block | None:
    """The block of a residual addition: its paths differ in weighted operations, and the shortcut has at most one."""
    makers = flow.before[add]
    if flow.nodes[add].op != "Add" or len(makers) != 2 or makers[0] == makers[1]:
        return None
    start = flow.dominator[add]
    sides = [flow.above(maker, start) for maker in makers]
    paths = sorted((sides[0] - sides[1], sides[1] - sides[0]), key=flow.weighted)
    skip, branch = paths
    if flow.weighted(skip) == flow.weighted(branch) or flow.weighted(skip) > 1:
        return None
    tail, last = [], add
    while last not in flow.outputs and len(flow.behind[last]) == 1:
        (last,) = flow.behind[last]
        if flow.nodes[last].op not in ACTIVATIONS:
            break
        tail.append(last)
    nodes = sorted({*sides[0], *sides[1], add, *tail})
    return Block("residual", nodes, branch, skip, add, tail)


def _add_stems_and_chains(tree: Tree) -> None:
    """Blocks of what lies in front of residual blocks and between them."""
    flow, count = tree.flow, len(tree.flow.nodes)
    residual = set(tree.owner)
    after, before = set[int](), set[int]()
    for index in range(count):
        if any(maker in residual or maker in after for maker in flow.before[index]):
            after.add(index)
    for index in reversed(range(count)):
        if any(reader in residual or reader in before for reader in flow.behind[index]):
            before.add(index)
    rest = [index for index in sorted(before) if index not in residual and flow.before[index]]
    for part in _connected(flow, [index for index in rest if index not in after]):
        tree.blocks.append(stem := Block("stem", []))
        tree.put(part, stem)
    for part in _connected(flow, [index for index in rest if index in after]):
        readers = {tree.owner[r] for i in part for r in flow.behind[i] if r in residual}
        weighted = flow.weighted(set(part))
        if not weighted and len(readers) == 1:
            # a norm and activation, a pool or a concatenation belongs to the block that reads it
            tree.put(part, readers.pop())
            continue
        tree.blocks.append(block := Block("chain" if weighted else "join", []))
        tree.put(part, block)


def _connected(flow: Flow, nodes: list[int]) -> list[list[int]]:
    """``nodes`` in groups that data flows between."""
    group: dict[int, int] = {}
    members: dict[int, list[int]] = defaultdict(list)
    for index in nodes:
        near = {group[maker] for maker in flow.before[index] if maker in group}
        target = min(near, default=index)
        members[target].append(index)
        group[index] = target
        for other in near - {target}:
            for each in members.pop(other):
                members[target].append(each)
                group[each] = target
    return [sorted(part) for part in members.values()]


def _add_heads_and_units(tree: Tree) -> None:
    """Blocks behind the residual ones, and of a network without any: a weighted operation and all up to the next."""
    flow, made = tree.flow, list[Block]()
    behind = bool(tree.blocks)
    for index, node in enumerate(flow.nodes):
        if index in tree.owner or not flow.before[index]:
            continue
        mine = [tree.owner[maker] for maker in flow.before[index] if maker in tree.owner]
        open_blocks = [block for block in mine if block.kind in ("head", "unit")]
        weighted = node.op in (*WEIGHTED_OPS, "ConvTranspose") and index not in flow.gates
        if open_blocks and not weighted:
            tree.put([index], max(open_blocks, key=lambda block: block.nodes[-1]))
            continue
        made.append(block := Block("head" if behind else "unit", []))
        tree.put([index], block)
    for block in made:
        # pools in front of a classifier belong to it
        readers = {tree.owner[r] for i in block.nodes for r in flow.behind[i]} - {block}
        if not tree.weights(block) and len(readers) == 1:
            tree.put(block.nodes, readers.pop())
            block.nodes = []
    tree.blocks += [block for block in made if block.nodes]
    heads = [block for block in tree.blocks if block.kind == "head"]
    small = all(flow.nodes[i].op not in ("Conv", "ConvTranspose") for b in heads for i in b.nodes)
    if len(flow.graph.outputs) == 1 and small and len(heads) > 1:
        for block in heads[1:]:
            tree.put(block.nodes, heads[0])
            tree.blocks.remove(block)

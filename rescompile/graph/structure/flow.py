"""The flow of data between nodes: readers, dominators, and what is pooled to one pixel."""

from __future__ import annotations

from functools import cached_property

import onnx_graphsurgeon as gs

from rescompile.graph.shared.links import WEIGHTED_OPS

INPUT = -1
"""The number of the graph's input in place of a node's."""
POOLS = ("GlobalAveragePool", "GlobalMaxPool")


class Flow:
    """Nodes by number in the order of execution. Arithmetic on shapes carries no data and is left out."""

    def __init__(self, graph: gs.Graph) -> None:
        graph.toposort()
        self.graph, self.nodes = graph, list(graph.nodes)
        number = {id(node): index for index, node in enumerate(self.nodes)}
        shapes: set[int] = set()
        self.before: list[list[int]] = []
        self.behind: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            data = [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable) and tensor.name]
            if node.op in ("Shape", "Size") or (data and all(id(tensor) in shapes for tensor in data)):
                shapes |= {id(tensor) for tensor in node.outputs}
                data = []
            makers = [
                number[id(tensor.inputs[0])] if tensor.inputs else INPUT
                for tensor in data
                if id(tensor) not in shapes
            ]
            self.before.append(makers)
            for maker in sorted(set(makers) - {INPUT}):
                self.behind[maker].append(index)
        self.outputs = {number[id(tensor.inputs[0])] for tensor in graph.outputs if tensor.inputs}
        self._dominate()

    def _dominate(self) -> None:
        """Immediate dominator of every node: the last node that all paths from the input to it pass."""
        self.dominator: list[int] = []
        self._height: list[int] = []
        for makers in self.before:
            common = makers[0] if makers else INPUT
            for maker in makers[1:]:
                common = self._meet(common, maker)
            self.dominator.append(common)
            self._height.append(self._height_of(common) + 1)

    def _height_of(self, index: int) -> int:
        return 0 if index == INPUT else self._height[index]

    def _meet(self, one: int, other: int) -> int:
        while one != other:
            if self._height_of(one) >= self._height_of(other):
                one = self.dominator[one]
            else:
                other = self.dominator[other]
        return one

    def dominates(self, one: int, other: int) -> bool:
        """Whether all paths from the input to ``other`` pass ``one``."""
        while self._height_of(other) > self._height_of(one):
            other = self.dominator[other]
        return one == other

    def above(self, index: int, stop: int) -> set[int]:
        """Node ``index`` and everything that it is made of, down from ``stop``, which is left out."""
        found: set[int] = set()
        todo = [index]
        while todo:
            each = todo.pop()
            if each not in (stop, INPUT) and each not in found:
                found.add(each)
                todo += self.before[each]
        return found

    @cached_property
    def pooled(self) -> set[int]:
        """Nodes whose output has one pixel, made of nothing but global pools."""
        found: set[int] = set()
        for index, node in enumerate(self.nodes):
            makers = self.before[index]
            if node.op in POOLS or _averages_pixels(node) or (makers and found.issuperset(makers)):
                found.add(index)
        return found

    @cached_property
    def gates(self) -> set[int]:
        """Pooled nodes that a later node joins with what was not pooled: attention and pooled context."""
        found: set[int] = set()
        for index in reversed(range(len(self.nodes))):
            joins = any(each not in self.pooled or each in found for each in self.behind[index])
            if index in self.pooled and joins:
                found.add(index)
        return found

    def weighted(self, side: set[int]) -> int:
        """Number of convolutions and linear layers among ``side``, without those of gates."""
        return sum(self.nodes[index].op in (*WEIGHTED_OPS, "ConvTranspose") for index in side - self.gates)


def _averages_pixels(node: gs.Node) -> bool:
    shape = node.outputs[0].shape if node.outputs else None
    return node.op in ("ReduceMean", "ReduceMax") and list(shape or ())[2:] in ([1, 1], [1])

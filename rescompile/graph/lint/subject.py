"""The graph that a rule of the fusion contract inspects, and the violation that it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.graph.shared.block_names import block_of
from rescompile.manifest import Precision

Findings = Iterator[str]
Rule = Callable[["Subject"], Findings]


@dataclass(frozen=True)
class Subject:
    """A graph under inspection."""

    graph: gs.Graph
    precision: Precision
    rest_type: str
    """``float32`` or ``float16``: the type that everything that is not quantized must have."""
    residual_adds: int
    """Number of residual adds in the network's definition."""
    opset: int
    fp16_blocks: frozenset[str] = frozenset()
    """Blocks that are meant to stay in floating point."""
    full_range: Mapping[str, float] = field(default_factory=dict)
    """Offset by tensor of full range: there the quantizer, which saturates, takes the place of the ReLU."""

    floating: Mapping[str, str] = field(default_factory=dict)
    """The reason by node that a rule of placement leaves in floating point."""

    def nodes(self, *ops: str) -> list[gs.Node]:
        """Nodes with one of these operators, in the order of execution."""
        return [node for node in self.graph.nodes if node.op in ops]

    def adds(self) -> list[gs.Node]:
        """The residual adds, without the Add of preprocessing."""
        return [node for node in self.nodes("Add") if node.name.endswith(".add")]

    def in_int8(self, node: gs.Node) -> bool:
        """Whether ``node`` is meant to be quantized."""
        placed = node.name not in self.floating and block_of(node.name) not in self.fp16_blocks
        return self.precision == "int8" and placed


@dataclass(frozen=True)
class Violation:
    """A broken rule: ``str(violation)`` is the sentence for the user."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.message}"


def values_of(tensor: gs.Tensor) -> NDArray[np.generic] | None:
    """The values of a constant; None for a computed tensor."""
    return tensor.values if isinstance(tensor, gs.Constant) else None


def same_scale(first: gs.Node, second: gs.Node) -> bool:
    """Whether both quantizers have the same constant scale."""
    one, other = values_of(first.inputs[1]), values_of(second.inputs[1])
    return one is not None and other is not None and np.array_equal(one, other)

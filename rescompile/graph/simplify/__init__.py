"""An exported network rewritten with few spellings, so that the later stages meet each operation in one form.

Exporters write the same network in many ways: constants as nodes, ReduceMean or AveragePool for the global pool,
Reshape or Squeeze for Flatten, MatMul and Add for a classifier, a Pad in front of a convolution, FP16 weights between
casts. Each rewrite replaces one such spelling; an operator that none of them knows stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import write
from rescompile.graph.simplify.batch import free_batch
from rescompile.graph.simplify.ends import Intake, normalized_range, take_input, take_off_endings
from rescompile.graph.simplify.opening import leaves_batch_open, opened
from rescompile.graph.simplify.spellings import rewrite


@dataclass(frozen=True)
class Simplified:
    """A network in few spellings; its tensors keep the names that they have in the user's file."""

    graph: onnx.ModelProto
    intake: Intake
    """How the user's file takes its images, which the graph takes as float32 [N, C, H, W]."""
    range: float | None
    """The largest value of an image in front of the normalization that the graph does itself: 1 or 255. None where
    it expects images that are normalized already."""
    endings: tuple[str | None, ...]
    """For every output the operator that was taken off: Softmax, LogSoftmax, Sigmoid."""
    notes: tuple[str, ...]


def simplify(model: onnx.ModelProto, *, size: tuple[int, int] | None = None) -> Simplified:
    """``model`` in fp32 and in an opset that all stages know.

    Args:
        model: a network with one image input, of opset 7 or newer.
        size: height and width for a graph that leaves them open.

    Raises:
        GraphError: the file cannot be read as a network of images, or computes something that is not its answers.
    """
    graph = opened(model, size)
    intake = take_input(graph)
    graph.cleanup().toposort()
    rewrite(graph)
    free_batch(graph, partial(opened, model, size, batch=2) if leaves_batch_open(model) else None)
    graph.cleanup().toposort()
    endings, notes = take_off_endings(graph)
    graph.cleanup().toposort()
    _name_nodes(graph)
    return Simplified(write(graph), intake, normalized_range(graph, intake), endings, notes)


def _name_nodes(graph: gs.Graph) -> None:
    """Name every node, after its output where the exporter gave it no name of its own."""
    known: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in known:
            node.name = f"{node.outputs[0].name}.{node.op}"
        known.add(node.name)

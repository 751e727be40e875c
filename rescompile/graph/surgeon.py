"""The way into onnx-graphsurgeon and out of it, the same for every stage."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger.logger import G_LOGGER

from rescompile.graph.vocabulary import IR_VERSION

# its own lint speaks of states in the middle of a rewrite; what leaves a stage is checked by ours
G_LOGGER.severity = G_LOGGER.CRITICAL


def read(model: onnx.ModelProto) -> gs.Graph:
    """An editable copy of ``model``."""
    return gs.import_onnx(model)


def write(graph: gs.Graph) -> onnx.ModelProto:
    """``graph`` as ONNX, without what no longer reaches the output, in the order of execution."""
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = IR_VERSION
    model.producer_name = "rescompile"
    return model

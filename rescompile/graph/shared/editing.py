"""ONNX models as editable onnx-graphsurgeon graphs and back, the same way for every stage.

A gs.Graph has no place for a model's metadata, so ours travels from ``read`` to ``write`` beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger.logger import G_LOGGER

from rescompile.graph.shared.names import IR_VERSION, METADATA_PREFIX

# graphsurgeon warns about states in the middle of a rewrite; finished graphs are checked by our own lint
G_LOGGER.severity = G_LOGGER.CRITICAL


def read(model: onnx.ModelProto) -> gs.Graph:
    """An editable copy of ``model`` that keeps our own entries of its metadata."""
    graph = gs.import_onnx(model)
    graph.rescompile_metadata = {
        entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA_PREFIX)
    }
    return graph


def write(graph: gs.Graph) -> onnx.ModelProto:
    """``graph`` as ONNX in the order of execution, without nodes that do not reach the output.

    It carries the metadata of the model that was read; a graph built from nothing has none.
    """
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = IR_VERSION
    model.producer_name = "rescompile"
    onnx.helper.set_model_props(model, getattr(graph, "rescompile_metadata", {}))
    return model


def reconnect(readers: Iterable[gs.Node], old: gs.Tensor, new: gs.Tensor) -> None:
    """Let ``readers`` read ``new`` wherever they read ``old``."""
    for node in list(readers):
        node.inputs = [new if tensor is old else tensor for tensor in node.inputs]

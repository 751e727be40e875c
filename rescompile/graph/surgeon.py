"""The way into onnx-graphsurgeon and out of it, the same for every stage.

A gs.Graph has no place for a model's metadata, so ours travels from ``read`` to ``write`` beside it.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger.logger import G_LOGGER

from rescompile.graph.vocabulary import IR_VERSION, METADATA_PREFIX

# its own lint speaks of states in the middle of a rewrite; what leaves a stage is checked by ours
G_LOGGER.severity = G_LOGGER.CRITICAL


def read(model: onnx.ModelProto) -> gs.Graph:
    """An editable copy of ``model``, which remembers our own entries of its metadata."""
    graph = gs.import_onnx(model)
    graph.rescompile_metadata = {
        entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA_PREFIX)
    }
    return graph


def write(graph: gs.Graph) -> onnx.ModelProto:
    """``graph`` as ONNX, without what no longer reaches the output, in the order of execution.

    It carries the metadata of the model that was read; a graph made by other means has none.
    """
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    model.ir_version = IR_VERSION
    model.producer_name = "rescompile"
    onnx.helper.set_model_props(model, getattr(graph, "rescompile_metadata", {}))
    return model

"""Clips in a spelling that OpenVINO computes right.

Where the channels of dequantized values have several scales, as behind a Concat of two tensors, OpenVINO 2026.4.1 reads
a Clip behind them with the scale of the first channel (40 % of error was seen). It reads a ReLU right, and a minimum,
but of a maximum and a minimum in a row it makes a Clip. Elsewhere Clips are right, and fused with convolutions.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.shared.links import MOVING_OPS, cannot_be_negative, made_by, step_above

Step = tuple[str, list[gs.Tensor]]
"""An operator and its constants."""


def keeps_clip(tensor: gs.Tensor) -> bool:
    """Whether OpenVINO computes a Clip of ``tensor`` right: its values were not put side by side."""
    return made_by(step_above(tensor, {*MOVING_OPS, "Relu", "Clip", "Neg"} - {"Concat"})) != "Concat"


def spell_clips_apart(graph: gs.Graph) -> None:
    """Make a ReLU and a minimum of every Clip of ``graph`` that OpenVINO reads wrongly.

    A lower bound that is not 0 is a minimum of negated values.
    """
    for clip in [node for node in graph.nodes if node.op == "Clip" and not keeps_clip(node.inputs[0])]:
        given = [*clip.inputs[1:], *[gs.Variable.empty()] * 2]
        low, high = given[:2]
        steps = [] if low.is_empty() else _at_least(low, clip.inputs[0])
        steps += [] if high.is_empty() else [("Min", [high])]
        if steps:
            _replace(graph, clip, steps)


def _at_least(low: gs.Constant, tensor: gs.Tensor) -> list[Step]:
    if low.values.any():
        negated = gs.Constant(f"{low.name}.negated", np.asarray(-low.values))
        return [("Neg", []), ("Min", [negated]), ("Neg", [])]
    return [] if cannot_be_negative(tensor) else [("Relu", [])]


def _replace(graph: gs.Graph, node: gs.Node, steps: list[Step]) -> None:
    """Put ``steps`` in place of ``node``."""
    tensor, (output,) = node.inputs[0], node.outputs
    node.outputs.clear()
    for index, (op, constants) in enumerate(steps, 1):
        made = output if index == len(steps) else gs.Variable(f"{output.name}.step{index}")
        graph.nodes.append(gs.Node(op, made.name, {}, [tensor, *constants], [made]))
        tensor = made

"""Sentences about calibration methods: where they did not apply to a network, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import onnx

from calibration.methods.channel_groups import channel_groups
from calibration.methods.quantization_risks import Risk
from rescompile.config import Recipe
from rescompile.graph.shared.metadata import float_reasons
from rescompile.graph.shared.names import INPUT
from rescompile.wording import counted


def notes_on_pins(graph: onnx.ModelProto, tensors: Collection[str]) -> tuple[str, ...]:
    """A sentence about the quantized tensors (without the input) none of whose channels can be scaled."""
    groups = channel_groups(graph)
    pinned = [name for name in tensors if name != INPUT and not groups.free(name)]
    if not pinned:
        return ()
    because = f", because of {', '.join(groups.pinning)}" if groups.pinning else ""
    return (f"channels of {len(pinned)} of {len(tensors)} tensors are not equalized{because}",)


def notes_on_full_range(reasons: Mapping[str, str | None], *, asked: bool) -> tuple[str, ...]:
    """A sentence about the tensors that use all 256 values of int8 and, by reason, those that do not."""
    inner = {name: reason for name, reason in reasons.items() if name != INPUT}
    wide = list(inner.values()).count(None)
    why = Counter(reason for reason in inner.values() if reason is not None)
    others = ", ".join(f"{count} {reason}" for reason, count in why.most_common())
    if asked and not wide:
        where = f" ({others})" if others else ""
        return (
            f"--full-range changes nothing: the backend takes all 256 values of int8 in no tensor{where}",
        )
    if not inner:
        return ()
    kept = f"; not the others: {others}" if others else ""
    return (f"{wide} of {counted(len(inner), 'quantized tensor')} use all 256 values of int8{kept}",)


def notes_on_rounding(graph: onnx.ModelProto, recipe: Recipe, *, has_moments: bool) -> tuple[str, ...]:
    """A sentence where the first convolution's weights are not rounded against what they read."""
    if recipe.rounding == "learned":
        return ()
    image = graph.graph.input[0].name
    readers = [node for node in graph.graph.node if image in node.input]
    floating = [node.name for node in readers if node.name in float_reasons(graph)]
    if has_moments and not floating:
        return ()
    if floating:
        why = f"'{floating[0]}' stays in floating point"
    elif len(readers) != 1:
        why = f"{len(readers)} operations read the image"
    else:
        why = f"'{readers[0].name}', which reads the image, is not an ungrouped convolution"
    return (f"no weights are rounded against the image's pixels: {why}",)


def notes_on_risks(risks: tuple[Risk, ...], recipe: Recipe) -> tuple[str, ...]:
    """One sentence for each risk that was found, with what was done or can be done about it."""
    remedies = {
        "heavy-tailed weights": "they are rounded against each other (--rounding learned)"
        if recipe.rounding == "learned"
        else "--effort best rounds them against each other",
        "outlier activations": "channels are equalized"
        if recipe.equalize
        else "--effort balanced equalizes channels",
        "dead channels": "they cost time and no accuracy; pruning them would make the network faster",
    }
    return tuple(f"{entry.sentence}; {remedies[entry.kind]}" for entry in risks)

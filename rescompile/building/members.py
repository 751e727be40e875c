"""Accuracy of each network of an ensemble, in fp32 and in the precision of the engine.

An engine returns the mean alone. So OpenVINO executes the deployable graph once more, with the members' answers as its
outputs.
"""

from __future__ import annotations

import numpy as np
import onnx

from rescompile.accuracy.parity import BATCH, image_batches
from rescompile.backends.onnxruntime import reference_session, with_outputs
from rescompile.backends.openvino.runner import simulate
from rescompile.building.deployable import Deployable
from rescompile.building.source import Source
from rescompile.building.validation import Validation
from rescompile.manifest import Batch, Manifest
from rescompile.report import MemberAccuracy
from rescompile.sources.ensemble import member_tensors


def member_accuracies(
    source: Source, deployable: Deployable, validation: Validation, manifest: Manifest
) -> tuple[MemberAccuracy, ...]:
    """The members of an ensemble, with accuracies where the images have labels; none for a single network."""
    named = [MemberAccuracy(name=member.name, checkpoint=member.checkpoint) for member in source.members]
    if not named or source.kind != "classes" or validation.images.labels is None:
        return tuple(named)
    exact, quantized = (member_tensors(graph.graph) for graph in (source.graph, deployable.graph))
    reference = reference_session(source.graph.SerializeToString(), optimize=True, outputs=exact)
    inner = onnx.load_from_string(with_outputs(deployable.graph.SerializeToString(), quantized))
    engine = simulate(inner, Batch(1, BATCH, BATCH))
    right, count = np.zeros((2, len(named)), np.int64), 0
    for batch in image_batches(validation.images, source.preprocess, manifest.inputs[0]):
        sides = (
            (reference.tensors, exact, batch.reference),
            (engine.tensors, quantized, batch.candidate),
        )
        for side, (network, tensors, images) in enumerate(sides):
            answers = network(images)
            for place, tensor in enumerate(tensors):
                right[side, place] += int((answers[tensor].argmax(1) == batch.labels).sum())
        count += len(batch.reference)
    engine.close()
    shares = (right / count).tolist()
    return tuple(
        MemberAccuracy(
            name=member.name, checkpoint=member.checkpoint, top1_reference=reference, top1_engine=engine
        )
        for member, reference, engine in zip(named, *shares, strict=True)
    )

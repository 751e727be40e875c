"""Accuracy of each network of an ensemble, in fp32 and in the precision of the engine, counted while it is measured.

An engine returns the mean alone. So OpenVINO executes the deployable graph once more, with the members' answers as its
outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.images import ImageSet
from rescompile.accuracy.parity import BATCH, ImageBatch
from rescompile.backends.onnxruntime import reference_session, with_outputs
from rescompile.backends.openvino.runner import simulate
from rescompile.building.deployable import Deployable
from rescompile.building.source import Source
from rescompile.manifest import Batch
from rescompile.report import MemberAccuracy
from rescompile.sources.ensemble import member_tensors


class Members:
    """The networks of an ensemble, beside the ensemble itself.

    ``reference`` is the ensemble in fp32, and remembers what its networks answered to the same images; ``count`` then
    compares these answers, and those of the deployable graph, with the labels.
    """

    def __init__(self, source: Source, deployable: Deployable) -> None:
        self._members = source.members
        self._exact, self._quantized = (
            member_tensors(graph.graph) for graph in (source.graph, deployable.graph)
        )
        self._answer = source.graph.graph.output[0].name
        self._reference = reference_session(source.graph, optimize=True, outputs=(self._answer, *self._exact))
        inner = with_outputs(deployable.graph, self._quantized)
        self._engine = simulate(inner, Batch(1, BATCH, BATCH))
        self._answered: dict[str, NDArray[Any]] = {}
        self._right, self._count = np.zeros((2, len(self._members)), np.int64), 0

    def reference(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of the ensemble in fp32."""
        self._answered = self._reference.tensors(images)
        return self._answered[self._answer].astype(np.float32, copy=False)

    def count(self, batch: ImageBatch) -> None:
        """Count right answers to the batch that ``reference`` was called with."""
        sides = (self._answered, self._exact), (self._engine.tensors(batch.candidate), self._quantized)
        for side, (answers, tensors) in enumerate(sides):
            for place, tensor in enumerate(tensors):
                self._right[side, place] += int((answers[tensor].argmax(1) == batch.labels).sum())
        self._count += len(batch.reference)

    def accuracies(self) -> tuple[MemberAccuracy, ...]:
        """The accuracy of each member, as it was counted."""
        shares = (self._right / self._count).tolist()
        return tuple(
            MemberAccuracy(
                name=member.name, checkpoint=member.checkpoint, top1_reference=exact, top1_engine=engine
            )
            for member, exact, engine in zip(self._members, *shares, strict=True)
        )

    def close(self) -> None:
        """Free the networks."""
        self._engine.close()


def members_of(source: Source, deployable: Deployable, images: ImageSet) -> Members | None:
    """The networks of an ensemble; None for a single network, or where ``images`` have no labels of classes."""
    decided = source.kind == "classes" and images.labels is not None
    return Members(source, deployable) if source.members and decided else None


def unmeasured(source: Source) -> tuple[MemberAccuracy, ...]:
    """The networks of an ensemble without accuracies; none for a single network."""
    return tuple(MemberAccuracy(name=member.name, checkpoint=member.checkpoint) for member in source.members)

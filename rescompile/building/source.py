"""The network that every stage after opening works on, wherever it came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from calibration.preprocess import Preprocess
from rescompile.building.rewrites import Answers, trial_answers
from rescompile.manifest import CheckpointRef, OutputKind
from rescompile.sources.class_names import imagenet_class_names, read_class_names

IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Source:
    """The network, ready for calibration and quantization."""

    graph: onnx.ModelProto
    """Folded fp32 graph, canonically named."""
    name: str
    depth: int | None
    residual_adds: int
    class_count: int
    class_names: tuple[str, ...] | None
    """From ``--classes`` or ImageNet's own, if known."""
    checkpoint: CheckpointRef
    preprocess: Preprocess
    is_imagenet: bool
    """An ImageNet ResNet with 1,000 classes, which can be calibrated on the built-in photographs."""
    random: bool
    """Random weights, which are good for timing only."""
    kind: OutputKind = "classes"
    """Meaning of the first output."""
    other_kinds: tuple[OutputKind, ...] = ()
    """Meaning of the other outputs."""
    kind_reason: str = ""
    told_kind: tuple[OutputKind, str] | None = None
    """Meaning of the first output by the network's own configuration, and where that is."""
    preprocess_assumed: bool = False
    """Whether neither the user nor the weights' origin says how pixels are normalized."""
    endings: tuple[str | None, ...] = (None,)
    """For every output the operator that was taken off its end: Softmax, LogSoftmax, Sigmoid."""
    remarks: tuple[str, ...] = ()
    """Sentences about the network's origin and form."""
    members: tuple[Source, ...] = ()
    """The networks of an ensemble."""
    calibration: Path | None = None
    """Images or a calibration table that came along with the weights, for want of the user's."""

    @cached_property
    def trial_answers(self) -> Answers:
        """See ``rewrites.trial_answers``; several checks compare with them."""
        return trial_answers(self.graph)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about this network."""
        if not self.random:
            return self.remarks
        return (
            *self.remarks,
            "the weights are random: this engine is for timing, and its accuracy means nothing",
        )


def class_names_of(
    given: Path | tuple[str, ...] | None, count: int, *, is_imagenet: bool
) -> tuple[str, ...] | None:
    """The names of ``count`` classes: those ``given``, else ImageNet's where it is that network."""
    if given is not None:
        return read_class_names(given, 2 if count == 1 else count)  # one logit decides between two classes
    return imagenet_class_names() if is_imagenet else None

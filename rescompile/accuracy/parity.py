"""Comparison of two networks' outputs on one image set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.file_names import text_of
from calibration.images import ImageSet, InMemoryImages, open_image_set
from calibration.preprocess import Preprocess, normalize
from rescompile.accuracy.certainty import Seen, before_first_look, draws, verdict_of
from rescompile.accuracy.label_fit import misfit
from rescompile.accuracy.pair_sample import PairSample
from rescompile.accuracy.thumbnails import MOST_THUMBNAILS, thumbnail
from rescompile.backends.fp32 import Fp32Session
from rescompile.manifest import OutputSpec, TensorSpec
from rescompile.metrics import MOST_CHANGES, ONE_CLASS, Answers, Change, Labels, ParityMeter
from rescompile.progress import Progress
from rescompile.report import ClassChange, Flip, Limits, MemberAccuracy, Parity

Network = Callable[[NDArray[Any]], Any]
"""Images [N, ...] to logits [N, classes], or other outputs; a dict of several by name."""
BATCH = 8
SAMPLE_SIZE = 2000
"""Most pairs of logits that are kept for the plot."""


class ImageBatch(NamedTuple):
    """The same images in the form that each network takes."""

    reference: NDArray[np.float32]
    """[N, 3, H, W], preprocessed."""
    candidate: NDArray[Any]
    """[N, ...] in the engine's own layout and dtype."""
    labels: Labels | None
    """Class indices [N], for every batch or for none."""
    pixels: NDArray[np.uint8] | None
    """[N, H, W, C]; None for images that a program normalized."""


@dataclass(frozen=True)
class Measurement:
    """The comparison, and at most ``SAMPLE_SIZE`` pairs (fp32, engine) of logits, drawn evenly from all."""

    parity: Parity
    logits: tuple[tuple[float, float], ...]
    answers: Answers
    names: tuple[str, ...]
    """Names of the images."""
    changes: tuple[Change, ...] = ()
    """The first images that the engine answers otherwise."""
    others: Mapping[str, Parity] = field(default_factory=dict)
    """The comparison of each output but the first, by name."""
    thumbnails: tuple[bytes, ...] = ()
    """PNG of the first of ``changes``."""
    at_sizes: Mapping[str, Measurement] = field(default_factory=dict)
    """The comparison at other sizes of images, by size in words."""
    members: tuple[MemberAccuracy, ...] = ()
    """The networks of an ensemble."""

    def flips(self, classes: Sequence[str]) -> tuple[Flip, ...]:
        """The first images whose answer differs between engine and reference, with the names of ``classes``."""
        labels = self.answers.labels

        def named(chosen: Sequence[int]) -> str:
            return ", ".join(classes[index] for index in chosen) or "none"

        return tuple(
            Flip(
                image=text_of(self.names[change.image]),
                reference=named(change.reference),
                engine=named(change.engine),
                label=None if labels is None else classes[labels[change.image]],
                reference_margin=change.reference_margin,
                engine_margin=change.engine_margin,
                thumbnail=self.thumbnails[place] if place < len(self.thumbnails) else b"",
            )
            for place, change in enumerate(self.changes)
        )

    def class_changes(self, classes: Sequence[str]) -> tuple[ClassChange, ...]:
        """The classes in which answers differ, called by ``classes``, those with the most such images first."""
        answers = self.answers
        labels, differ = answers.labels, answers.reference != answers.engine
        true = answers.reference if labels is None else labels

        def count(chosen: NDArray[np.bool_], index: int) -> int:
            return int((chosen & (true == index)).sum())

        changes = [
            ClassChange(
                name=classes[index],
                images=int((true == index).sum()),
                changed=count(differ, index),
                right_reference=None if labels is None else count(answers.reference == labels, index),
                right_engine=None if labels is None else count(answers.engine == labels, index),
            )
            for index in np.unique(true[differ]).tolist()
        ]
        return tuple(sorted(changes, key=lambda change: -change.changed)[:MOST_CHANGES])


def open_unlabelled(
    path: Path | InMemoryImages, *, limit: int | None, skip_unreadable: bool, single: bool = False
) -> tuple[ImageSet, tuple[str, ...]]:
    """The images of ``path`` for outputs that are not classes, and a note where they have labels that say nothing."""
    images = open_image_set(path, limit=limit, skip_unreadable=skip_unreadable, single=single)
    if images.labels is None:
        return images, ()
    note = f"the labels of {images.source} are not used, because the network's outputs are not classes"
    return replace(images, labels=None), (note,)


def open_validation_set(
    path: Path | InMemoryImages,
    *,
    classes: int,
    limit: int | None,
    need_labels: bool,
    skip_unreadable: bool,
    names: Sequence[str] | None = None,
    single: bool = False,
) -> ImageSet:
    """The user's validation set for a network with ``classes`` classes, called ``names`` where that is known.

    ``single`` allows a single image file, too.

    Raises:
        ImageSetError: it cannot be used, lacks labels that are needed, or has labels or class folders that do not
            match the network's classes.
    """
    images = open_image_set(
        path,
        limit=limit,
        need_labels=need_labels,
        skip_unreadable=skip_unreadable,
        known=names,
        single=single,
    )
    if images.labels is None or images.labels_fit(classes):
        return images
    if images.by_folder:
        raise ImageSetError(
            f"{path} has {len(images.class_names or ())} class folders, the network has {classes} classes, so the "
            "position of a folder is not its class: add the missing folders (they may be empty), or write a labels.csv"
        )
    if sentence := images.labels_from_one(classes):
        raise ImageSetError(sentence)
    wrong = int(images.labels.argmax())
    raise ImageSetError(
        f"{path}: {images.images.names[wrong]} has label {images.labels[wrong]}, the network has classes 0 to "
        f"{classes - 1}: correct the label, or pass the image set that belongs to this network"
    )


def compare_logits(
    reference: Network,
    candidate: Network,
    *,
    images: ImageSet,
    preprocess: Preprocess,
    candidate_input: TensorSpec,
    outputs: Sequence[OutputSpec] = (),
    thumbnails: bool = False,
    progress: Progress,
    compared: Callable[[ImageBatch], None] | None = None,
    until: Limits | None = None,
) -> Measurement:
    """Run both networks over ``images``, the candidate as ``candidate_input`` says, and compare their ``outputs``.

    Without ``outputs`` there is one, of kind classes. Networks with several return them by name. With ``thumbnails``
    small copies of the first images that the candidate answers otherwise are kept. ``compared`` is called with each
    batch after both networks. ``until`` are limits whose verdict ends the comparison as soon as it is certain
    (``certainty``) and the labels seem to fit the network; outputs that name no class, or several outputs, are always
    compared on all images.

    Raises:
        BackendError: the candidate's outputs are not finite or of another shape than the reference's.
        CheckpointError: the reference's outputs are not finite.
        ImageSetError: there are no images, one cannot be read, or a label is not a class of the network.
    """
    collected = _Collected(outputs, thumbnails=thumbnails, preprocess=preprocess)
    limits = until if collected.kind in ONE_CLASS and not collected.others else None
    used = np.zeros(len(images), np.bool_)
    for chosen in _until_certain(images, collected, limits):
        used |= chosen
        part = images if chosen.all() else images.part(chosen)
        collected.names += part.images.names
        for batch in image_batches(part, preprocess, candidate_input):
            collected.add(reference(batch.reference), candidate(batch.candidate), batch)
            if compared is not None:
                compared(batch)
            progress.advanced(collected.images, len(images))
    return collected.measurement(images, used)


def _until_certain(
    images: ImageSet, collected: _Collected, limits: Limits | None
) -> Iterator[NDArray[np.bool_]]:
    """All ``images`` at once; with ``limits`` random parts of them, until the verdict on what is ``collected``.

    The caller collects each part before it asks for the next.
    """
    count = len(images)
    if limits is None:
        yield np.ones(count, np.bool_)
        return
    names = collected.class_names
    for chosen in draws(count, before_first_look(None if images.labels is None else len(names))):
        yield chosen
        seen = collected.seen(count)
        # labels that do not seem to fit decide the verdict, so all of them are asked
        if (
            verdict_of(seen, limits) is not None
            and misfit(seen.answers, names, least=limits.min_top1) is None
        ):
            return


class _Collected:
    """The comparison of all outputs on the images so far."""

    def __init__(self, outputs: Sequence[OutputSpec], *, thumbnails: bool, preprocess: Preprocess) -> None:
        self.kind = outputs[0].kind if outputs else "classes"
        self.meter = ParityMeter(self.kind)
        self.others = {output.name: ParityMeter(output.kind) for output in outputs[1:]}
        self.names: list[str] = []
        self.images = 0
        self._first = outputs[0].name if outputs else ""
        self.class_names = outputs[0].labels if outputs else ()
        self._sample = PairSample(SAMPLE_SIZE)
        self._most, self._color = MOST_THUMBNAILS if thumbnails else 0, preprocess.color
        self._thumbnails: list[bytes] = []

    def add(self, expected: Any, found: Any, batch: ImageBatch) -> None:
        """Compare both networks' answers to ``batch``."""
        if isinstance(expected, dict) and isinstance(found, dict):
            for name, other in self.others.items():
                other.update(expected[name], found[name])
            expected, found = expected[self._first], found[self._first]
        self.meter.update(expected, found, batch.labels)
        self._sample.update(expected, found)
        if batch.pixels is not None:
            self._keep_thumbnails(batch.pixels)
        self.images += len(expected)

    def _keep_thumbnails(self, pixels: NDArray[np.uint8]) -> None:
        new = self.meter.changes[len(self._thumbnails) : self._most]
        self._thumbnails += [thumbnail(pixels[change.image - self.images], self._color) for change in new]

    def seen(self, total: int) -> Seen:
        """What is known of all ``total`` images."""
        parity = self.meter.result(image_source="", image_fingerprint="")
        return Seen(parity, self.meter.answers(), self.meter.energies(), total)

    def measurement(self, images: ImageSet, used: NDArray[np.bool_]) -> Measurement:
        """The result, of those of ``images`` that were ``used``."""
        results = partial(
            ParityMeter.result,
            image_source=images.source,
            image_fingerprint=(images if used.all() else images.part(used)).fingerprint,
            image_set_size=None if used.all() else len(images),
        )
        return Measurement(
            results(self.meter),
            self._sample.pairs(),
            self.meter.answers(),
            tuple(self.names),
            tuple(self.meter.changes),
            {name: results(other) for name, other in self.others.items()},
            tuple(self._thumbnails),
        )


def all_outputs(session: Fp32Session, outputs: Sequence[OutputSpec]) -> Network:
    """``session`` as a network that returns what an engine with these ``outputs`` does."""
    return session.tensors if len(outputs) > 1 else session


def image_batches(
    images: ImageSet, preprocess: Preprocess, candidate_input: TensorSpec
) -> Iterator[ImageBatch]:
    """Batches in the form that the fp32 reference takes, beside the form that ``candidate_input`` says."""
    for batch in images.batches(preprocess, BATCH):
        normalized = normalize(batch.images, preprocess)
        engine_input: Any = batch.images if candidate_input.dtype == "uint8" else normalized
        pixels: Any = batch.images if batch.images.dtype == np.uint8 else None
        yield ImageBatch(normalized, engine_input, batch.labels, pixels)

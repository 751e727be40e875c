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
from rescompile.accuracy.certainty import Seen, draws, verdict_of
from rescompile.accuracy.thumbnails import MOST_THUMBNAILS, thumbnail
from rescompile.backends.fp32 import Fp32Session
from rescompile.manifest import OutputSpec, TensorSpec
from rescompile.metrics import MOST_CHANGES, ONE_CLASS, Answers, Change, Labels, Logits, ParityMeter
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
    (``certainty``); outputs that name no class, or several outputs, are always compared on all images.

    Raises:
        BackendError: the candidate's outputs are not finite or of another shape than the reference's.
        CheckpointError: the reference's outputs are not finite.
        ImageSetError: there are no images, one cannot be read, or a label is not a class of the network.
    """
    kind = outputs[0].kind if outputs else "classes"
    meter, sample, done = ParityMeter(kind), _PairSample(SAMPLE_SIZE), 0
    others = {output.name: ParityMeter(output.kind) for output in outputs[1:]}
    small: list[bytes] = []
    limits = until if kind in ONE_CLASS and not others else None
    used, names = np.zeros(len(images), np.bool_), list[str]()
    for chosen in draws(len(images)) if limits else [~used]:
        part = images.part(chosen) if limits else images
        used, names = used | chosen, [*names, *part.images.names]
        for batch in image_batches(part, preprocess, candidate_input):
            expected, found = reference(batch.reference), candidate(batch.candidate)
            if isinstance(expected, dict) and isinstance(found, dict):
                for name, other in others.items():
                    other.update(expected[name], found[name])
                expected, found = expected[outputs[0].name], found[outputs[0].name]
            meter.update(expected, found, batch.labels)
            if thumbnails and batch.pixels is not None:
                new = meter.changes[len(small) : MOST_THUMBNAILS]
                small += [thumbnail(batch.pixels[change.image - done], preprocess.color) for change in new]
            sample.update(expected, found)
            if compared is not None:
                compared(batch)
            done += len(expected)
            progress.advanced(done, len(images))
        if limits and verdict_of(_seen(meter, len(images)), limits) is not None:
            break
    results = partial(
        ParityMeter.result,
        image_source=images.source,
        image_fingerprint=(images if used.all() else images.part(used)).fingerprint,
        image_set_size=None if used.all() else len(images),
    )
    return Measurement(
        results(meter),
        sample.pairs(),
        meter.answers(),
        tuple(names),
        tuple(meter.changes),
        {name: results(other) for name, other in others.items()},
        tuple(small),
    )


def _seen(meter: ParityMeter, total: int) -> Seen:
    return Seen(meter.result(image_source="", image_fingerprint=""), meter.answers(), meter.energies(), total)


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


class _PairSample:
    """Draws pairs evenly from a stream: each gets a random key, and those with the smallest keys stay.

    The draw is seeded, and does not depend on the sizes of the batches.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._random = np.random.default_rng(0)
        self._keys = np.empty(0)
        self._pairs = np.empty((0, 2), np.float32)

    def update(self, reference: Logits, engine: Logits) -> None:
        fresh = np.stack([reference.ravel(), engine.ravel()], axis=1).astype(np.float32)
        keys = np.concatenate([self._keys, self._random.random(len(fresh))])
        kept = np.argsort(keys, kind="stable")[: self._capacity]
        self._keys, self._pairs = keys[kept], np.concatenate([self._pairs, fresh])[kept]

    def pairs(self) -> tuple[tuple[float, float], ...]:
        return tuple((float(reference), float(engine)) for reference, engine in self._pairs)

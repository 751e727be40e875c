"""``rescompile compare``: any two of fp32 reference, deployable graph and engine, block by block.

    SQNR       = 10 log10( sum a^2 / sum (b - a)^2 )  dB     over a block's output on all images, a of the first side
    cosine     = <a, b> / (|a| |b|)
    saturation = share of a quantized tensor's elements at +-127 or -128

Two sides *diverge* at the first block, in the order of execution, whose SQNR is below a threshold. An engine may clip a
block's output where the quantizer behind it saturates, which its graph does one node later; both are then clipped
before they are compared, so that a difference is one of arithmetic. Images run one at a time: memory holds the block
outputs of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.images import ImageSet, open_image_set
from rescompile.accuracy.comparands import (
    Comparand,
    ComparandName,
    Observation,
    open_comparand,
    parse_comparand,
    preprocess_of,
)
from rescompile.accuracy.error_by_block import Sums
from rescompile.accuracy.label_fit import misfit
from rescompile.accuracy.parity import open_unlabelled, open_validation_set
from rescompile.errors import BackendUnavailable, GraphError, UsageError
from rescompile.manifest import MANIFEST, ONNXRUNTIME_MODEL, REFERENCE, OutputKind, OutputSpec, read_manifest
from rescompile.metrics import ONE_CLASS, Answers, class_of
from rescompile.progress import Progress, StageClock
from rescompile.report import JsonReport
from rescompile.wording import counted

PART_DB = 20.0
"""Below this the error is more than a tenth of the block's RMS, and classes begin to change."""
ROUNDING_DB = 60.0
"""Above this, two sides differ by sums rounded in another order: losing some of it does not count as a drop."""
IMAGES = 16
"""Default number of images; graphs that are executed as they are written are slow."""


class Saturation(msgspec.Struct, frozen=True):
    """The most saturated quantized tensor of a block."""

    tensor: str
    share: float


class BlockComparison(msgspec.Struct, frozen=True):
    """One block's output on both sides, over all images."""

    block: str
    sqnr_db: float
    cosine: float
    finite: bool
    """Whether neither side has an infinity or NaN; where one has, SQNR and cosine have their worst values."""
    saturation_a: Saturation | None
    saturation_b: Saturation | None
    """None where the side has no quantized tensor in the block, or does not show them."""


class Drop(msgspec.Struct, frozen=True):
    """The largest loss of SQNR from one block to the next; SQNR above ``ROUNDING_DB`` counts as ``ROUNDING_DB``."""

    block: str
    after: str
    """The block before it."""
    drop_db: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two sides, block by block."""

    a: str
    b: str
    part_db: float
    parts_at: str | None
    """The first block whose SQNR is below ``part_db``; None where there is none."""
    largest_drop: Drop | None
    """None where there is no loss below ``ROUNDING_DB``."""
    blocks: tuple[BlockComparison, ...]


class ComparisonReport(JsonReport, frozen=True, kw_only=True):
    """The result of ``rescompile compare``, and its images."""

    images: int
    image_source: str
    image_fingerprint: str
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()


def compare(
    a: str,
    b: str | None,
    *,
    images: Path | None,
    limit: int | None = IMAGES,
    part_db: float = PART_DB,
    skip_unreadable: bool = False,
    progress: Progress,
) -> ComparisonReport:
    """Compare ``a`` and ``b``; without ``b``, the reference, graph and engine of the directory ``a`` in this order.

    Raises:
        UsageError: a side does not exist, there are no images, or ``part_db`` is not finite.
        EngineError, GraphError: a side is damaged, or both are not of one network.
        BackendUnavailable: an engine cannot run on this machine.
        ImageSetError: the images cannot be used with the network.
    """
    if images is None:
        raise UsageError("compare runs both sides on the same images; pass --images PATH")
    if not math.isfinite(part_db):
        raise UsageError(
            f"--part-db {part_db:g} is not a number of decibels; 20 means an error of a tenth of the signal's RMS"
        )
    names, notes = ([parse_comparand(a), parse_comparand(b)], ()) if b is not None else _parts(a)
    open_image_set(images, limit=1)  # a mistake is found before anything is loaded
    clock = StageClock(progress)
    with ExitStack() as held:
        with clock.stage("load"):
            sides, more = _opened(names, held, optional=b is None)
            for one, other in pairwise(sides):
                check_alike(one, other)
            output = next((side.output for side in sides if side.output is not None), None)
            found, remarks = _images(images, output, sides[0].classes, limit=limit, skip=skip_unreadable)
        with clock.stage("compare"):
            pairs, answers = _line_up(sides, found, progress, output.kind if output else "classes")
    classes = output.labels if output else tuple(f"class {index}" for index in range(sides[0].classes))
    strange = misfit(answers, classes)
    return ComparisonReport(
        images=len(found),
        image_source=found.source,
        image_fingerprint=found.fingerprint,
        comparisons=tuple(pair.result(part_db) for pair in pairs),
        notes=(
            *notes,
            *more,
            *_on_preprocessing(sides),
            *_on_hidden_blocks(sides),
            *found.notes,
            *remarks,
            *filter(None, [strange]),
        ),
    )


def _images(
    path: Path, output: OutputSpec | None, classes: int, *, limit: int | None, skip: bool
) -> tuple[ImageSet, tuple[str, ...]]:
    """The images, with labels where the output names classes, and remarks on them."""
    if output is not None and output.kind not in ONE_CLASS:
        return open_unlabelled(path, limit=limit, skip_unreadable=skip, single=True)
    count = classes if output is None else len(output.labels)
    found = open_validation_set(
        path, classes=count, limit=limit, need_labels=False, skip_unreadable=skip,
        names=output.labels if output else None, single=True,
    )  # fmt: skip
    return found, ()


def _line_up(
    sides: Sequence[Comparand], images: ImageSet, progress: Progress, kind: OutputKind
) -> tuple[list[_Pair], Answers]:
    """Run every image through every side once, and add it to the sums of each pair of neighbours.

    Returns:
        The pairs, and the classes that the first and the last side name, for ``label_fit``.
    """
    preprocess = preprocess_of(sides)
    pairs = [_Pair(one, other) for one, other in pairwise(sides)]
    last = list(sides[0].blocks)[-1]
    chosen: list[tuple[int, int]] = []
    labels: list[int] = []
    for done, batch in enumerate(images.batches(preprocess, 1), start=1):
        seen = [side(batch.images[0], preprocess) for side in sides]
        for pair, (first, second) in zip(pairs, pairwise(seen), strict=True):
            pair.add(first, second)
        if batch.labels is not None and last in seen[0].values and last in seen[-1].values:
            rows = (seen[0].values[last].reshape(1, -1), seen[-1].values[last].reshape(1, -1))
            chosen.append((int(class_of(rows[0], kind)[0]), int(class_of(rows[1], kind)[0])))
            labels.append(int(batch.labels[0]))
        progress.advanced(done, len(images))
    named = np.array(chosen, np.int64).reshape(-1, 2)
    return pairs, Answers(named[:, 0], named[:, 1], np.array(labels, np.int64) if labels else None)


def check_alike(a: Comparand, b: Comparand) -> None:
    """Refuse two sides that are not of one network.

    Raises:
        GraphError: the blocks, the number of classes or the input size differ.
    """
    for one, other in ((a, b), (b, a)):
        missing = [block for block in one.blocks if block not in other.blocks]
        if missing:
            raise GraphError(
                f"{a.name} and {b.name} are not of one network: block '{missing[0]}' is in {one.name} alone; "
                "compare sides of one checkpoint"
            )
    if a.classes != b.classes:
        raise GraphError(
            f"{a.name} and {b.name} are not of one network: they have {a.classes} and {b.classes} classes; "
            "compare sides of one checkpoint"
        )
    if (a.input.size, a.input.channels) != (b.input.size, b.input.channels):
        raise GraphError(
            f"{a.name} takes images of {_size_of(a)}, {b.name} of {_size_of(b)}; compare sides of one input size"
        )


def _size_of(side: Comparand) -> str:
    height, width = side.input.size
    return f"{height}x{width} pixels and {counted(side.input.channels, 'channel')}"


def _parts(directory: str) -> tuple[list[ComparandName], tuple[str, ...]]:
    """Reference, graph and engine of ``directory``, without those that are missing or equal to another one."""
    name = parse_comparand(directory)
    if name.part is None or not Path(directory).is_dir():
        raise UsageError(f"{name} is one side; pass the other side too, or an engine directory alone")
    manifest = read_manifest(name.path)
    fp32, graph, engine = (ComparandName(name.path, part) for part in ("fp32", "graph", "engine"))
    if REFERENCE not in manifest.files:
        return [graph, engine], (
            f"{name.path} was built with --no-reference: only its graph and its engine are compared",
        )
    if manifest.backend == "onnxruntime" and ONNXRUNTIME_MODEL not in manifest.files:
        return [fp32, graph], ("an onnxruntime engine is its deployable graph",)
    return [fp32, graph, engine], ()


def _opened(
    names: Sequence[ComparandName], held: ExitStack, *, optional: bool
) -> tuple[list[Comparand], tuple[str, ...]]:
    """The sides; an ``optional`` engine that cannot run here becomes a note while two others remain."""
    sides: list[Comparand] = []
    for name in names:
        try:
            side = open_comparand(name)
        except BackendUnavailable as error:
            if optional and len(sides) >= 2:
                return sides, (f"the engine is left out: {error}",)
            raise
        held.callback(side.close)
        sides.append(side)
    return sides, ()


def _on_preprocessing(sides: Sequence[Comparand]) -> tuple[str, ...]:
    if any(side.preprocess is not None for side in sides):
        return ()
    steps = preprocess_of(sides)
    return (f"no {MANIFEST} says how images are prepared, so they are prepared as is usual: {steps}",)


def _on_hidden_blocks(sides: Sequence[Comparand]) -> tuple[str, ...]:
    return tuple(
        f"{side.name} shows {'its logits alone' if side.visible == {'fc'} else 'some of its blocks alone'}: "
        "its library does not show the other tensors"
        for side in sides
        if side.visible < set(side.blocks)
    )


class _Pair:
    """Two sides and the sums over the images so far."""

    def __init__(self, a: Comparand, b: Comparand) -> None:
        self.a, self.b = a, b
        self._sums = {block: Sums(a.name, b.name) for block in a.blocks if block in a.visible & b.visible}
        self._saturated = (_SaturationCounter(a), _SaturationCounter(b))

    def add(self, a: Observation, b: Observation) -> None:
        """Count one image."""
        for counter, side in zip(self._saturated, (a, b), strict=True):
            counter.add(side)
        for block, sums in self._sums.items():
            one, other = a.values[block], b.values[block]
            if block in self.a.clipped and block not in self.b.clipped:
                other = _clip(other, self.b, block)
            if block in self.b.clipped and block not in self.a.clipped:
                one = _clip(one, self.a, block)
            sums.add(block, one, other)

    def result(self, part_db: float) -> Comparison:
        """Figures of every block, and the block at which the sides diverge."""
        blocks = tuple(self._block(block, sums) for block, sums in self._sums.items())
        return Comparison(
            a=self.a.name,
            b=self.b.name,
            part_db=part_db,
            parts_at=next((each.block for each in blocks if each.sqnr_db < part_db), None),
            largest_drop=_largest_drop(blocks),
            blocks=blocks,
        )

    def _block(self, block: str, sums: Sums) -> BlockComparison:
        error = sums.result(block)
        a, b = (counter.worst(block) for counter in self._saturated)
        return BlockComparison(block, error.sqnr_db, error.cosine, sums.finite, a, b)


class _SaturationCounter:
    """Counts the saturated elements of each quantized tensor of one side."""

    def __init__(self, side: Comparand) -> None:
        self._block_of = side.tensors
        self._counts = {tensor: np.zeros(2, np.int64) for tensor in side.tensors}

    def add(self, image: Observation) -> None:
        for tensor, counts in image.saturated.items():
            self._counts[tensor] += counts

    def worst(self, block: str) -> Saturation | None:
        """The tensor of ``block`` with the largest share; the first of equals."""
        shares = [
            Saturation(tensor, float(saturated / size))
            for tensor, (saturated, size) in self._counts.items()
            if self._block_of[tensor] == block and size
        ]
        return max(shares, key=lambda each: each.share, default=None)


def _clip(values: NDArray[np.float32], side: Comparand, block: str) -> NDArray[np.float32]:
    """``values`` cut off where the quantizer behind them saturates, if there is one."""
    return np.minimum(values, side.tops[block]) if block in side.tops else values


def _largest_drop(blocks: Sequence[BlockComparison]) -> Drop | None:
    heights = [min(each.sqnr_db, ROUNDING_DB) for each in blocks]
    drops = [
        Drop(after.block, before.block, high - low)
        for (before, after), (high, low) in zip(pairwise(blocks), pairwise(heights), strict=True)
    ]
    worst = max(drops, key=lambda drop: drop.drop_db, default=None)
    return worst if worst is not None and worst.drop_db > 0 else None

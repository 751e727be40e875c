"""A build's report as lines of (label, value), which terminal and page share."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rescompile.accuracy.certainty import ERROR
from rescompile.report import BuildReport, Flip, FloatOperations, MemberAccuracy, Speed, StageRecord
from rescompile.wording import counted, duration, percent, points, size

Line = tuple[str, str]
MOST_NODES = 4
"""Nodes that a terminal shows for each reason."""


def calibrated_on(images: int, source: str) -> str:
    """Origin of a calibration table's numbers; an imported table does not say which images it saw."""
    return f"{counted(images, 'image')} of {source}" if images else f"{source} (imported)"


def stage_value(stage: StageRecord) -> str:
    """Seconds and peak memory of one stage."""
    return f"{duration(stage.seconds)}, peak {size(stage.peak_rss_bytes)}"


def identity(report: BuildReport) -> tuple[Line, ...]:
    """Network, precision, backend and target."""
    return (
        ("model", report.model),
        ("precision", precision(report)),
        ("backend", report.backend),
        ("target", report.target or "this machine"),
        ("task", f"{report.task} ({report.task_reason})" if report.task_reason else report.task),
        *(("member", member_words(member, report)) for member in report.members),
    )


def precision(report: BuildReport) -> str:
    """The precision, and how many blocks of an INT8 engine have another one."""
    kept, every = len(report.fp16_blocks), len(report.work)
    if not kept:
        return report.precision
    return (
        f"{report.precision} with {f'{kept} of {every} blocks' if every else counted(kept, 'block')} in FP16"
    )


def member_words(member: MemberAccuracy, report: BuildReport) -> str:
    """One network of an ensemble, and its own accuracy where that is known."""
    words = f"{member.name} from {member.checkpoint.source}"
    if member.top1_reference is None or member.top1_engine is None:
        return words
    own, engine = percent(member.top1_reference), percent(member.top1_engine)
    return f"{words}: top-1 {own} in fp32, {engine} in {report.precision}"


def subject(report: BuildReport) -> str:
    """Name of the thing that was measured: the engine, or what ran in its place."""
    return "engine" if report.engine_executed else report.measured_on.partition(" (")[0]


def measurements(report: BuildReport) -> tuple[Line, ...]:
    """Every measured figure, with or without a limit on it."""
    if report.relative_rms is None or not report.images:
        return ()
    word = "top-1" if report.task == "classes" else "accuracy"
    lines = [("images", images_of(report))]
    shares = {
        "agreement with fp32": (report.top1_agreement, report.agreement_interval),
        f"{word} of the fp32 reference": (report.top1_reference, next(iter(report.top1_intervals), None)),
        f"{word} of the {subject(report)}": (report.top1_engine, next(iter(report.top1_intervals[1:]), None)),
    }
    lines.extend((label, share(found, ends)) for label, (found, ends) in shares.items() if found is not None)
    if (
        report.top1_drop_p is not None
        and report.top1_reference is not None
        and report.top1_engine is not None
    ):
        drop = points(100 * (report.top1_reference - report.top1_engine))
        lines.append((drop_word(report), f"{drop} (as large by chance alone: {percent(report.top1_drop_p)})"))
    errors = {"relative RMS": report.relative_rms, "cosine": report.cosine, "largest error": report.max_abs}
    if report.task in ("values", "binary"):  # of one or a few numbers it says nothing
        del errors["cosine"]
    if report.task == "features":
        errors["smallest cosine of an image"] = report.worst_cosine
    lines.extend((label, f"{value:.5g}") for label, value in errors.items() if value is not None)
    return tuple(lines)


def drop_word(report: BuildReport) -> str:
    """Name of the difference of the two accuracies."""
    return "top-1 drop" if report.task == "classes" else "loss of accuracy"


def output_word(report: BuildReport) -> str:
    """Name of one number that the network returns."""
    return {"values": "value", "features": "feature"}.get(report.task, "logit")


def share(found: float, interval: tuple[float, float] | None) -> str:
    """A share in percent, and its 95 % interval."""
    if interval is None:
        return percent(found)
    low, high = (f"{100 * end:.1f}" for end in interval)
    return f"{percent(found)} (95 % interval: {low} to {high} %)"


def speed(report: BuildReport) -> tuple[Line, ...]:
    """Times of the engine and of fp32, and their sizes; nothing where they were not measured."""
    found = report.speed
    if found is None:
        return ()
    unstable = " (may be unstable)" if found.disturbances else ""
    return (
        ("speed", f"{speed_words(found)}, {found.library}, batch {found.batch}{unstable}"),
        ("time of a call", f"{_ms(found.engine_ms, found.engine_interval)}"),
        ("time in fp32", f"{_ms(found.fp32_ms, found.fp32_interval)}"),
        ("size", f"{size(found.engine_bytes)}, fp32 {size(found.fp32_bytes)}"),
    )


def speed_words(found: Speed) -> str:
    """The ratio of times in words that also fit an engine that is not faster."""
    if found.ratio < 1:
        return f"{1 / found.ratio:.2f}x slower than fp32"
    return f"{found.ratio:.2f}x faster than fp32" if found.ratio >= 1.005 else "as fast as fp32"


def _ms(median: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{median:.3g} ms (95 % interval: {low:.3g} to {high:.3g} ms)"


def tiles(report: BuildReport) -> tuple[tuple[str, str, str], ...]:
    """The figures that a reader looks for first, as (label, figure, remark)."""
    found = []
    if report.top1_agreement is not None and report.images:
        found.append(("agreement with fp32", _short(report.top1_agreement), counted(report.images, "image")))
    if report.top1_engine is not None and report.top1_reference is not None:
        word = "top-1" if report.task == "classes" else "accuracy"
        found.append((word, _short(report.top1_engine), f"fp32 {_short(report.top1_reference)}"))
    elif report.relative_rms is not None and report.images:
        found.append(("relative RMS", f"{report.relative_rms:.3g}", "error of the outputs"))
    if report.speed is not None:
        times = f"{report.speed.engine_ms:.3g} ms, fp32 {report.speed.fp32_ms:.3g} ms"
        if report.speed.disturbances:
            times += ", may be unstable"
        found.append(("speed", speed_words(report.speed).removesuffix(" than fp32"), times))
        found.append(("size", size(report.speed.engine_bytes), f"fp32 {size(report.speed.fp32_bytes)}"))
    return tuple(found)


def _short(share: float) -> str:
    return f"{100 * share:.2f} %"


MOST_FLIPS = 10
FLIPS_HEADER = ("image", "label", "fp32", "engine")


def flips_explained(report: BuildReport) -> str:
    """What the margins of the changed images say: how many are smaller than the usual error of a logit."""
    margins = [flip.reference_margin for flip in report.flips if flip.reference_margin is not None]
    if not margins or not report.logits:
        return ""
    usual = math.sqrt(sum((engine - fp32) ** 2 for fp32, engine in report.logits) / len(report.logits))
    close = sum(margin < 2 * usual for margin in margins)
    return (
        "The margin is how much a network prefers its class to the other one, in logits. The usual error of one logit "
        f"is {usual:.3g} (RMS), and for {close} of these {counted(len(margins), 'image')} the fp32 margin is less than "
        "twice that: the fp32 network itself was nearly undecided there."
    )


def flip_margins(flip: Flip) -> tuple[str, str]:
    """Margins of both networks as words; empty for answers of several labels."""
    return tuple(  # type: ignore[return-value]
        "" if margin is None else f"by {margin:.3g}" for margin in (flip.reference_margin, flip.engine_margin)
    )


CLASSES_HEADER = ("class", "images", "changed", "right in fp32", "right in the engine")


def class_changes(report: BuildReport) -> tuple[tuple[str, ...], ...]:
    """One row for each class with changed images; ``CLASSES_HEADER`` names the cells."""
    return tuple(
        (
            entry.name,
            f"{entry.images}",
            f"{entry.changed}",
            "" if entry.right_reference is None else f"{entry.right_reference}",
            "" if entry.right_engine is None else f"{entry.right_engine}",
        )
        for entry in report.class_changes
    )


TENSORS_HEADER = ("tensor", "scale", "amax", "threshold", "saturated %", "error, SQNR dB")


def tensors(report: BuildReport) -> tuple[tuple[str, ...], ...]:
    """One row for each quantized tensor; ``TENSORS_HEADER`` names the cells."""
    return tuple(
        (
            entry.tensor,
            "" if entry.scale is None else f"{entry.scale:.4g}",
            f"{entry.amax:.4g}",
            f"{entry.threshold:.4g}",
            "" if entry.saturated is None else f"{100 * entry.saturated:.3g}",
            "" if entry.sqnr_db is None else f"{entry.sqnr_db:.1f}",
        )
        for entry in report.ranges
    )


BLOCKS_HEADER = ("block", "precision", "SQNR dB", "cosine", "Mop", "share of the work %", "sensitivity")


def blocks(report: BuildReport) -> tuple[tuple[str, ...], ...]:
    """One row for each block in the order of execution; ``BLOCKS_HEADER`` names the cells."""
    errors = {entry.block: entry for entry in report.blocks}
    work = {entry.block: entry for entry in report.work}
    damages = {entry.block: entry.relative_rms for entry in report.damages}
    total = sum(entry.ops for entry in work.values()) or 1
    rows = []
    for name in dict.fromkeys([*errors, *work] if not work else [*work, *errors]):
        error, own = errors.get(name), work.get(name)
        kept = name in report.fp16_blocks or (own is not None and own.float_ops > own.int8_ops)
        float_word = "FP16" if name in report.fp16_blocks else "float"
        rows.append(
            (
                name,
                report.precision if report.precision != "int8" else float_word if kept else "int8",
                "" if error is None else f"{error.sqnr_db:.1f}",
                "" if error is None else f"{error.cosine:.6f}",
                "" if own is None else f"{own.ops / 1e6:.3g}",
                "" if own is None else f"{100 * own.ops / total:.1f}",
                f"{damages[name]:.4g}" if name in damages else "",
            )
        )
    return tuple(rows)


def flips(report: BuildReport) -> tuple[tuple[str, ...], ...]:
    """The first images whose class the engine changes; ``FLIPS_HEADER`` names the cells."""
    return tuple(
        (flip.image, flip.label or "", flip.reference, flip.engine) for flip in report.flips[:MOST_FLIPS]
    )


def lint(report: BuildReport) -> str:
    """How many rules of the fusion contract were checked and broken."""
    if not report.lint.rules:
        return "not checked"
    return (
        f"{counted(len(report.lint.rules), 'rule')} checked, {len(report.lint.violations) or 'none'} broken"
    )


def floating(operations: Iterable[FloatOperations]) -> tuple[Line, ...]:
    """Each reason that keeps operations of an INT8 engine in floating point, and their nodes."""
    return tuple((entry.reason, ", ".join(entry.nodes)) for entry in operations)


def in_floating_point(operations: Iterable[FloatOperations]) -> tuple[Line, ...]:
    """``floating`` for a terminal: the first nodes of each reason."""
    lines = []
    for entry in operations:
        shown, rest = entry.nodes[:MOST_NODES], len(entry.nodes[MOST_NODES:])
        more = f" and {rest} more" if rest else ""
        lines.append(("floating point", f"{entry.reason}: {', '.join(shown)}{more}"))
    return tuple(lines)


def fused(report: BuildReport) -> str:
    """How many residual adds are fused."""
    if report.fused is None:
        return "not counted"
    return f"{report.fused.fused} of {report.fused.of} (seen in the {report.fused.seen_in})"


def fp16_blocks(report: BuildReport) -> tuple[Line, ...]:
    """The blocks that stay in FP16 and the reformats between them and INT8; nothing if there are none."""
    if not report.fp16_blocks:
        return ()
    return (("blocks in FP16", ", ".join(report.fp16_blocks)), ("reformats", f"{report.reformats}"))


FRONTIER_HEADER = (
    "INT8 blocks",
    "reformats",
    "agreement",
    "top-1 drop",
    "relative RMS",
    "limits",
    "FP16 blocks",
)


def frontier(report: BuildReport) -> tuple[tuple[str, ...], ...]:
    """One row for each choice of FP16 blocks that was measured; ``FRONTIER_HEADER`` names the cells."""
    return tuple(
        (
            str(point.int8_blocks),
            str(point.reformats),
            "" if point.top1_agreement is None else percent(point.top1_agreement),
            "no labels" if point.top1_drop is None else points(point.top1_drop),
            f"{point.relative_rms:.5g}",
            "met" if point.passed else "missed",
            ", ".join(point.fp16_blocks) or "none",
        )
        for point in report.frontier
    )


def how_built(report: BuildReport) -> tuple[Line, ...]:
    """The date, and every option as it took effect."""
    lines = [] if report.date is None else [("date", report.date)]
    return (*lines, *report.options.items())


def provenance(report: BuildReport) -> tuple[Line, ...]:
    """Origin of weights, calibration table and images, each with its hash."""
    lines: list[Line] = []
    if report.checkpoint is not None:
        lines.append(("checkpoint", report.checkpoint.source))
        lines.append(("checkpoint sha256", report.checkpoint.sha256))
    if report.calibration is not None:
        table = report.calibration
        lines.append(
            ("calibration", f"{calibrated_on(table.images, table.source)}, thresholds by {table.method}")
        )
        lines.append(("calibration table sha256", table.sha256))
    if report.images:
        lines.append(("measured on", f"{report.image_source}: {_counted_images(report)}"))
        lines.append(("image set fingerprint", report.image_fingerprint))
    return tuple(lines)


def images_of(report: BuildReport) -> str:
    """How many images the figures rest on, and of how many where the verdict was certain before the last."""
    if report.image_set_size is None:
        return f"{report.images}"
    return f"{report.images} of {report.image_set_size}"


def _counted_images(report: BuildReport) -> str:
    return counted(report.images, "image") if report.image_set_size is None else f"{images_of(report)} images"


def _certainty(report: BuildReport) -> str:
    """What an early verdict claims about the images that were left out, and what it does not."""
    if report.image_set_size is None:
        return ""
    hidden = []
    # what is worse than it seems cannot make a failed engine pass
    if report.passed and report.limits.max_relative_rms is not None:
        hidden.append("errors far larger than these")
    if report.passed and report.top1_engine is not None:
        hidden.append("labels that do not fit")
    unless = f" unless a few of them have {' or '.join(hidden)}" if hidden else ""
    return (
        f" drawn at random (the others would change this verdict with a probability of at most {percent(ERROR)}"
        f"{unless}; --validate all compares them, too)"
    )


def explanation(report: BuildReport) -> str:
    """The reason for the verdict, and a second sentence where the engine itself was not measured."""
    if report.engine_executed or not report.images:
        return _reason(report)
    return f"{_reason(report)} All figures come from the {report.measured_on}."


def _reason(report: BuildReport) -> str:
    if report.misfit is not None:
        return f"{report.misfit[:1].upper()}{report.misfit[1:]}."
    images = f"{_counted_images(report)}{_certainty(report)}"
    failed = [check.name for check in report.checks if not check.passed]
    if failed:
        checks = counted(len(report.checks), "check")
        return f"{len(failed)} of {checks} failed on {images}: {', '.join(failed)}."
    if not report.passed:
        return f"{counted(len(report.lint.violations), 'rule')} of the fusion contract broken."
    if not report.engine_executed:
        return "The engine could not be executed on this machine, so it is not verified."
    if not report.judged:
        return "No limit was set, so nothing is claimed about the accuracy of this engine."
    kept = f" It is {precision(report)}." if report.fp16_blocks else ""
    return f"The engine meets every limit, measured on {images}.{kept}"

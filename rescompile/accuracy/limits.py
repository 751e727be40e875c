"""Limits of an engine: what is asked of it, and whether a measurement meets it."""

from __future__ import annotations

import math

import msgspec

from rescompile.accuracy.advice import SPEED
from rescompile.accuracy.parity import Measurement
from rescompile.errors import UsageError
from rescompile.manifest import OutputKind, Precision
from rescompile.measuring.speedup import LIBRARIES
from rescompile.metrics import ONE_CLASS
from rescompile.report import Check, Limits, Parity, Speed
from rescompile.wording import counted, percent, points

_SLACK = 1e-9
"""In percentage points: (0.9339 - 0.9319) * 100 is 0.2 only up to rounding, and 0.2 was asked."""


def judge(parity: Parity, limits: Limits) -> tuple[Check, ...]:
    """Each limit beside its measurement; the first, finite outputs, is always asked.

    Raises:
        UsageError: a limit was asked that these outputs or images do not have.
    """
    check_kind(limits, parity.task)
    # compare_logits has refused outputs that are not finite
    word = "outputs" if parity.task in NUMBERS else "logits"
    checks = [Check(f"finite {word}", "all", f"all of {parity.images} images", passed=True)]
    if (asked := limits.min_agreement) is not None and (share := parity.top1_agreement) is not None:
        checks.append(Check("agreement", f"at least {percent(asked)}", percent(share), share >= asked))
    words = ("top-1", "top-1 drop") if parity.task == "classes" else ("accuracy", "loss of accuracy")
    if (asked := limits.max_top1_drop) is not None:
        drop = _top1_drop(parity)
        checks.append(Check(words[1], f"at most {points(asked)}", points(drop), drop <= asked + _SLACK))
    if (asked := limits.min_top1) is not None:
        share = _labelled(parity, "a smallest top-1 accuracy", parity.top1_engine)
        checks.append(Check(words[0], f"at least {percent(asked)}", percent(share), share >= asked))
    if (asked := limits.max_relative_rms) is not None:
        rms = parity.relative_rms
        checks.append(Check("relative RMS", f"at most {asked:.5g}", f"{rms:.5g}", rms <= asked))
    if (asked := limits.min_cosine) is not None:
        cosine = parity.cosine if parity.worst_cosine is None else parity.worst_cosine
        checks.append(Check("smallest cosine", f"at least {asked:.6g}", f"{cosine:.6g}", cosine >= asked))
    if (asked := limits.max_error) is not None:
        error = parity.max_abs
        checks.append(Check("largest error", f"at most {asked:.5g}", f"{error:.5g}", error <= asked))
    return tuple(checks)


def judge_all(measured: Measurement, limits: Limits) -> tuple[Check, ...]:
    """``judge`` for the first output, and for the others those limits that do not need labels.

    At other sizes of images all limits count but the smallest top-1 accuracy: networks are less right there.
    """
    checks = judge(measured.parity, limits)
    for name, parity in measured.others.items():
        agreement = None if parity.task in NUMBERS else limits.min_agreement
        own = msgspec.structs.replace(limits, min_agreement=agreement, max_top1_drop=None, min_top1=None)
        checks += tuple(
            msgspec.structs.replace(check, name=f"{check.name} of {name}") for check in judge(parity, own)
        )
    relative = msgspec.structs.replace(limits, min_top1=None)
    for size, other in measured.at_sizes.items():
        checks += tuple(
            msgspec.structs.replace(check, name=f"{check.name} at {size}")
            for check in judge_all(other, relative)
        )
    return checks


NUMBERS: tuple[OutputKind, ...] = ("values", "features")
"""Kinds of output that name no class: they are judged by their error."""


def check_kind(limits: Limits, kind: OutputKind) -> None:
    """Refuse limits that an output of this ``kind`` cannot have.

    Raises:
        UsageError: names the option and what to ask instead.
    """
    if kind in NUMBERS and limits.min_agreement is not None:
        raise UsageError(
            f"--min-agreement compares classes, and this network's outputs are {kind}, which name none; pass "
            f"--max-relative-rms, --max-error or --min-cosine instead{_or_classes(kind)}"
        )
    if kind not in ONE_CLASS and limits.need_labels:
        option = "--min-top1" if limits.max_top1_drop is None else "--max-top1-drop"
        instead = "--max-relative-rms" if kind in NUMBERS else "--min-agreement"
        raise UsageError(
            f"{option} needs outputs that name one class for each image, and this network's are {kind}; pass {instead} "
            f"instead{_or_classes(kind)}"
        )


def _or_classes(kind: OutputKind) -> str:
    """What to do where a classifier was taken for features, as one that ends in a pool is."""
    return ", or --task classes if they are classes" if kind == "features" else ""


def check_speed_limit(limits: Limits | None, backend: str) -> None:
    """Refuse a limit on the speed-up of an engine whose library does not run fp32 graphs.

    Raises:
        UsageError: names the backend and what to do instead.
    """
    if limits is not None and limits.min_speedup is not None and backend not in LIBRARIES:
        raise UsageError(
            f"--min-speedup times engines of {' and '.join(LIBRARIES)} beside their fp32 network, not those of "
            f"{backend}; build a second engine with --precision fp32 and compare both with `rescompile profile`"
        )


def default_limits(precision: Precision, *, random_weights: bool, kind: OutputKind = "classes") -> Limits:
    """The limits of a user who set none.

    Random weights need finite logits alone: such a network's logits lie so close together that rounding alone
    reorders them, so neither agreement nor a relative error tells a good engine from a bad one.
    """
    if random_weights:
        return Limits()
    agreement, relative_rms = {"fp32": (0.995, 1e-3), "fp16": (0.99, 0.02), "int8": (0.90, 0.15)}[precision]
    return Limits(min_agreement=None if kind in NUMBERS else agreement, max_relative_rms=relative_rms)


def limits_for(
    asked: Limits | None, precision: Precision, *, random_weights: bool, kind: OutputKind = "classes"
) -> Limits:
    """The limits that were ``asked``, or the defaults where nothing was asked about the answers.

    A limit on the speed alone says nothing about the answers, so the defaults stay beside it.
    """
    if asked is not None and (asked.judge_answers or asked.min_speedup is None):
        return asked
    defaults = default_limits(precision, random_weights=random_weights, kind=kind)
    return msgspec.structs.replace(defaults, min_speedup=asked.min_speedup if asked else None)


def judge_speed(speed: Speed | None, limits: Limits) -> tuple[Check, ...]:
    """The limit on the speed-up beside the measured one; nothing where none was asked or nothing was measured."""
    if limits.min_speedup is None or speed is None:
        return ()
    asked = f"at least {limits.min_speedup:.3g} times fp32"
    measured = f"{speed.ratio:.2f} times fp32"
    return (Check(SPEED, asked, measured, speed.ratio >= limits.min_speedup),)


def speed_not_judged(speed: Speed | None, limits: Limits) -> tuple[str, ...]:
    """A note where a speed-up was asked for and could not be measured."""
    if limits.min_speedup is None or speed is not None:
        return ()
    return (
        "--min-speedup was not judged, because this engine and the fp32 network could not be timed here; run "
        "`rescompile verify` where the engine runs",
    )


def _top1_drop(parity: Parity) -> float:
    """Loss of top-1 accuracy in percentage points; negative where the engine is better."""
    what = "a largest top-1 drop"
    return 100 * (
        _labelled(parity, what, parity.top1_reference) - _labelled(parity, what, parity.top1_engine)
    )


def _labelled(parity: Parity, what: str, share: float | None) -> float:
    if share is None:
        raise UsageError(
            f"{what} was asked, but the images of {parity.image_source} have no labels: "
            "pass a labelled set (one folder per class, or labels.csv), or ask for --min-agreement instead"
        )
    return share


def too_few_images(parity: Parity, limits: Limits | None) -> tuple[str, ...]:
    """Notes on limits that were asked and that these images cannot decide: chance may put the figure on either side."""
    if limits is None:
        return ()
    notes = []
    asked, interval = limits.min_agreement, parity.agreement_interval
    if asked is not None and interval is not None and interval[0] < asked <= interval[1]:
        low, high = map(percent, interval)
        notes.append(
            f"{counted(parity.images, 'image')} cannot decide an agreement of {percent(asked)}: it lies between {low} "
            f"and {high} with a probability of 95 %; pass more images to --validation-set"
        )
    drop, one = limits.max_top1_drop, 100 / parity.images
    if drop is not None and parity.top1_engine is not None and parity.top1_agreement is not None:
        # at most all images on which the two differ may count for one side
        reach = 1.96 * one * math.sqrt(max(1.0, parity.images * (1 - parity.top1_agreement)))
        if reach > max(drop, one / 2):
            notes.append(
                f"{counted(parity.images, 'image')} cannot decide a top-1 drop of {points(drop)}: one image is "
                f"{points(one)}, and chance alone moves the drop by up to {points(reach)}; pass more images to "
                "--validation-set"
            )
    return tuple(notes)

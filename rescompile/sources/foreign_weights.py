"""Networks outside of the registry from weights alone: their plan by order and shapes, the rest tried on images.

Names of torchvision and its relatives say what each layer does. Other names leave parts of the function open: whether
there are shortcuts, where zero channels go, whether norms stand before or behind, where the stride is. Then every
reading is tried on labelled images, and the right one shows: the others answer at chance.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rescompile.errors import CheckpointError
from rescompile.manifest import CheckpointRef
from rescompile.models.planned import Plan, PlannedNetwork, Reading
from rescompile.sources.checkpoint import Weights, check_values
from rescompile.sources.identification import OTHER_WAYS
from rescompile.sources.layers import linear_layers
from rescompile.sources.layouts import read_plan
from rescompile.sources.network import SourceNetwork
from rescompile.sources.ordered_layers import UnreadableError
from rescompile.wording import listing

if TYPE_CHECKING:
    import onnx

OPSET = 17
_CLEAR = 3.0
"""Standard deviations of the difference between the best reading and the next."""
Images = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Evidence that can decide between readings of the same weights."""

    images: Callable[[Plan, int], Images | None]
    """Labelled images, normalized, for a plan and a number of classes; None where there are none."""
    stride_on: Literal["1x1", "3x3"] | None = None
    """The user's word on bottlenecks."""


class UnknownFormError(CheckpointError):
    """The layers do not form a network of a known kind."""


def open_foreign(weights: Weights, trial: Trial, size: tuple[int, int] | None = None) -> SourceNetwork:
    """The network that the weights belong to, exported for images of ``size`` (by default the usual one).

    Raises:
        UnknownFormError: no network of a known form has such layers.
        CheckpointError: nothing decides how they are joined.
    """
    check_values(weights.state_dict, weights.source)
    try:
        plan, notes, known = read_plan(weights.state_dict, weights.unused)
    except UnreadableError as error:
        seen = f" (its linear layers are {listing(linear_layers(weights.state_dict))})"
        raise UnknownFormError(
            f"{weights.path} holds layers that make no network of a known form: {error}{seen}: {OTHER_WAYS}"
        ) from None
    readings = list(readings_of(plan, known=known, stride_on=trial.stride_on))
    if len(readings) > 1:
        reading, note = _decide(plan, readings, trial, weights)
        notes.append(note)
    else:
        reading = readings[0]
    if not plan.head:
        notes.append("the weights have no classifier: the output is the features in front of it")
    network = PlannedNetwork(plan, reading)
    height, width = size or (plan.image_size, plan.image_size)
    return SourceNetwork(
        graph=export_module(network, (plan.channels, height, width)),
        name=name_of(plan, reading),
        checkpoint=CheckpointRef(weights.sha256, weights.source),
        notes=(*weights.notes, *notes),
        reference=lambda images: answers(network, images),
    )


def readings_of(plan: Plan, *, known: bool, stride_on: str | None) -> Iterator[Reading]:
    """All readings that the weights allow, the usual one first."""
    blocks = plan.blocks
    bottleneck = any(conv.kernel == 1 for conv in blocks[0].convs)
    widening = any(
        block.shortcut is None and block.convs[0].inputs != block.convs[-1].outputs for block in blocks
    )
    projected = any(block.shortcut is not None for block in blocks)
    normed = plan.stem[-1].norm is not None
    last_is_bare = normed and blocks[-1].convs[-1].norm is None
    single = len(blocks[0].convs) == 1
    later = {"1x1": (True,), "3x3": (False,)}.get(stride_on or "", (False,) if known else (False, True))
    relus = (True, False) if any(layer.activated for layer in plan.head) and not plan.concat_pool else (True,)
    orders = (True,) if last_is_bare else (False,) if known or not normed or single else (False, True)
    for pre, residual, end, late, relu in product(
        orders,
        (False,) if single else (True,) if known or projected else (True, False),
        ("half", "end") if widening and not known else ("half",),
        later if bottleneck else (False,),
        relus,
    ):
        if residual or (not pre and end == "half"):
            yield Reading(residual, "end" if end == "end" else "half", pre, late, relu)


def words(reading: Reading, readings: list[Reading]) -> str:
    """The difference between a reading and the others."""
    parts = []
    if len({each.residual for each in readings}) > 1:
        parts.append("residual" if reading.residual else "plain")
    if reading.residual and len({each.padding for each in readings}) > 1:
        parts.append(
            "zero channels on both sides" if reading.padding == "half" else "zero channels at the end"
        )
    if len({each.pre_activation for each in readings}) > 1:
        parts.append("norms before convolutions" if reading.pre_activation else "norms behind convolutions")
    if len({each.stride_later for each in readings}) > 1:
        parts.append("--stride-on 1x1" if reading.stride_later else "--stride-on 3x3")
    if len({each.head_relu for each in readings}) > 1:
        parts.append("ReLU in the head" if reading.head_relu else "no ReLU in the head")
    return ", ".join(parts)


def _decide(plan: Plan, readings: list[Reading], trial: Trial, weights: Weights) -> tuple[Reading, str]:
    """The reading that answers right, and a sentence with the accuracies of all."""
    options = "; ".join(words(reading, readings) for reading in readings)
    classes = len(plan.head[-1].linear[0]) if plan.head and plan.head[-1].linear else 0
    found = trial.images(plan, classes) if classes > 1 else None
    if found is None:
        raise CheckpointError(
            f"the names in {weights.path} do not say which function the weights belong to ({options}): pass "
            f"--validation-set with labelled images and the network's --mean and --std, on which they are tried; "
            f"or {OTHER_WAYS}"
        )
    images, labels = found
    right = [_right(PlannedNetwork(plan, reading), images, labels) for reading in readings]
    order = sorted(range(len(readings)), key=lambda at: -int(right[at].sum()))
    best, second = right[order[0]], right[order[1]]
    seen = "; ".join(f"{words(readings[at], readings)}: {right[at].mean():.1%}" for at in order)
    ahead, differing = int(best.sum()) - int(second.sum()), int((best != second).sum())
    if ahead <= _CLEAR * differing**0.5 or best.mean() < 2 / classes:
        raise CheckpointError(
            f"{len(labels)} labelled images do not decide which function the weights in {weights.path} belong to "
            f"({seen}): pass more of them, check --mean and --std; or {OTHER_WAYS}"
        )
    return readings[
        order[0]
    ], f"the weights leave their function open; on {len(labels)} labelled images: {seen}"


def _right(
    network: PlannedNetwork, images: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.bool_]:
    found = np.concatenate([answers(network, images[at : at + 50]) for at in range(0, len(images), 50)])
    right: NDArray[np.bool_] = found.argmax(1) == labels
    return right


def answers(network: torch.nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The module's answer to normalized images."""
    with torch.inference_mode():
        found: NDArray[np.float32] = network(
            torch.from_numpy(np.ascontiguousarray(images, np.float32))
        ).numpy()
    return found


def export_module(network: torch.nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The ONNX graph of a module for images [N, C, H, W] of one shape, any number of them."""
    import onnx

    stream: Any = io.BytesIO()  # the exporter writes to streams, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter says on every call that there is a newer one
        torch.onnx.export(
            network, (torch.zeros(2, *shape),), stream, dynamo=False, opset_version=OPSET,
            input_names=["input"], output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        )  # fmt: skip
    return onnx.load_from_string(stream.getvalue())


def name_of(plan: Plan, reading: Reading) -> str:
    """A name such as ``resnext50-32x4d`` or ``plain20``."""
    blocks = plan.blocks
    depth = 2 + sum(len(block.convs) for block in blocks)
    if not reading.residual:
        return f"plain{depth}"
    inner = blocks[0].convs[len(blocks[0].convs) // 2]
    family = "preresnet" if reading.pre_activation else "resnext" if inner.groups > 1 else "resnet"
    gated = "se" if any(block.gate for block in blocks) else ""
    wide = inner.groups == 1 and inner.outputs > plan.stem[-1].outputs
    deep = "d" if any(block.pooled for block in blocks) else "c" if len(plan.stem) == 3 else ""
    groups = f"-{inner.groups}x{inner.outputs // inner.groups}d" if inner.groups > 1 else ""
    return f"{'wide-' if wide else ''}{gated}{family}{depth}{deep}{groups}{'' if plan.maxpool else '-cifar'}"

"""Every operation of the package on tensors without values, in every form that a ResNet calls it in.

Running an entry launches nothing: ``launch.recording`` tells what it would launch. Shapes are representative: widths
that divide by 16, as a network's do, on the planes of ResNet-50's third stage and of a CIFAR network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.compiled_kernels.operands import (
    Plane,
    activation,
    batch_norm,
    folded,
    output,
    table,
    vector,
    weight,
)
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.image import Take
from fused_kernels.operands.partials import Partials
from fused_kernels.operands.zero_point import has_zero_sums
from fused_kernels.ops import chain, convolution, head, inference, passes, shortcut, statistics, stem
from fused_kernels.ops.splits import SplitSum

WINDOWS = {
    "3x3": Conv(3, 3, padding=1),
    "3x3/2": Conv(3, 3, stride=2, padding=1),
    "1x1": Conv(1, 1),
    "1x1/2": Conv(1, 1, stride=2),
}
"""Shapes of convolutions; where only one is compiled for a kernel it is the first, which needs the most registers."""
MAIN_PATH = ("3x3", "3x3/2", "1x1")
"""Windows that may follow a batch norm: a projection, 1x1/2, reads the block's input."""


@dataclass(frozen=True)
class Entry:
    """One call of one operation."""

    name: str
    """The operation and its form, for readers."""
    dtype: torch.dtype
    run: Callable[[], object]


WIDE = Plane(128, 256, 28)
SINGLE = Plane(1, 256, 14, ", one image")
NARROW = Plane(32, 16, 32, ", 16 channels")


def catalogue() -> list[Entry]:
    """All entries, those of wide layers first."""
    floats = (torch.bfloat16, torch.float16, torch.float32)
    entries: list[Entry] = []
    for plane in (WIDE, NARROW):
        for dtype in floats:
            entries += [*convolutions(dtype, plane), *gradients(dtype, plane)]
    for plane in (WIDE, SINGLE, NARROW):
        for dtype in floats:
            entries += float_inference(dtype, plane)
        entries += int8_inference(plane)
    for dtype in floats:
        entries += [*passes_over_memory(dtype), *stems(dtype)]
    for dtype in (*floats, torch.int8):
        entries += [*chains(dtype), *heads(dtype)]
    entries += chains(torch.int8, full_range=True)
    return [*entries, *int8_stems(), *images(), *shortcuts(), *small_vectors()]


def convolutions(dtype: torch.dtype, plane: Plane) -> Iterator[Entry]:
    """The forward pass of training."""
    for window, conv in WINDOWS.items():
        x, w = activation(plane, dtype), weight(plane, conv, dtype)
        for vectors in (None, batch_norm(plane.c)) if window in MAIN_PATH else (None,):
            form = f"{window}{' of relu(bn(x))' if vectors is not None else ''}{plane.label}"
            yield Entry(f"conv_moments {form}", dtype, partial(convolution.conv_moments, x, w, conv, vectors))
            yield Entry(f"conv_plain {form}", dtype, partial(convolution.conv_plain, x, w, conv, vectors))


def gradients(dtype: torch.dtype, plane: Plane) -> Iterator[Entry]:
    """The backward pass of training."""
    x, vectors = activation(plane, dtype), batch_norm(plane.c)
    coefficients = torch.empty((3, plane.c), device="meta")
    for window, conv in WINDOWS.items():
        dy, w = output(plane, conv, dtype), weight(plane, conv, dtype)
        form = f"{window}{plane.label}"
        yield Entry(f"wgrad {form}", dtype, partial(convolution.wgrad, x, dy, conv))
        shortcut_free = partial(convolution.dgrad_shortcut, dy, w, conv, x.shape, None)
        yield Entry(f"dgrad {form}", dtype, shortcut_free)
        if convolution.makes_dy(conv, plane.c, dtype):
            both = partial(convolution.wgrad_and_dy, x, dy, dy, vectors, coefficients, conv)
            yield Entry(f"wgrad_and_dy {form}", dtype, both)
            if window in MAIN_PATH:
                yield Entry(f"wgrad_and_dy {form} of relu(bn(x))", dtype, partial(both, vectors))
        if window not in MAIN_PATH:
            continue
        yield Entry(f"wgrad {form} of relu(bn(x))", dtype, partial(convolution.wgrad, x, dy, conv, vectors))
        yield Entry(f"dgrad_drelu {form}", dtype, partial(convolution.dgrad_drelu, dy, w, conv, x, vectors))
        for stride in (1, 2):
            shortcut = activation(plane, dtype, stride)
            form = f"{window} + shortcut{'/2' if stride == 2 else ''}{plane.label}"
            dgrad = partial(convolution.dgrad_shortcut, dy, w, conv, x.shape, shortcut, stride)
            yield Entry(f"dgrad {form}", dtype, dgrad)
            block = partial(convolution.dgrad_block, dy, w, conv, shortcut, stride, x, x, vectors)
            yield Entry(f"dgrad_block {form}", dtype, block)
            yield Entry(f"dgrad_block {form}, projection", dtype, partial(block, x, vectors))


def float_inference(dtype: torch.dtype, plane: Plane) -> Iterator[Entry]:
    """Convolutions with batch norm folded in."""
    for window, conv in WINDOWS.items():
        x, w, y = activation(plane, dtype), weight(plane, conv, dtype), output(plane, conv, dtype)
        call = partial(inference.conv_bias, x, w, vector(plane.c), conv)
        form = f"{window}{plane.label}"
        yield Entry(f"conv_bias {form}", dtype, partial(call, relu=False))
        if window in MAIN_PATH:
            yield Entry(f"conv_bias {form} + ReLU", dtype, partial(call, relu=True))
        if conv.stride == 1:
            yield Entry(f"conv_bias {form} + residual + ReLU", dtype, partial(call, relu=True, residual=y))


def int8_inference(plane: Plane) -> Iterator[Entry]:
    """Convolutions of int8, requantized."""
    int8 = torch.int8
    for window, conv in WINDOWS.items():
        x, w, y = activation(plane, int8), weight(plane, conv, int8), output(plane, conv, int8)
        call = partial(inference.conv_int8, x, w, vector(plane.c), vector(plane.c), conv)
        form = f"{window}{plane.label}"
        yield Entry(f"conv_int8 {form}", int8, partial(call, relu=False))
        if window in MAIN_PATH:
            yield Entry(f"conv_int8 {form} + ReLU", int8, partial(call, relu=True))
        if conv.stride == 1:
            residual = partial(call, residual=y, residual_scale=0.5)
            yield Entry(f"conv_int8 {form} + residual + ReLU", int8, partial(residual, relu=True))
            yield Entry(f"conv_int8 {form} + residual", int8, partial(residual, relu=False))
        if has_zero_sums(conv):
            yield from full_range_inference(plane, window, call)


def full_range_inference(plane: Plane, window: str, call: Callable[..., object]) -> Iterator[Entry]:
    """int8 inference with zero stored as -128: saturation replaces every ReLU except the network's last one."""
    form, moved = f"{window}, full range{plane.label}", partial(call, zero_sums=table(plane.c))
    yield Entry(f"conv_int8 {form}", torch.int8, partial(moved, relu=False))
    if WINDOWS[window].stride == 1:
        y = output(plane, WINDOWS[window], torch.int8)
        residual = partial(moved, residual=y, residual_scale=0.5)
        yield Entry(f"conv_int8 {form} + residual", torch.int8, partial(residual, relu=False))
        yield Entry(f"conv_int8 {form} + residual + ReLU", torch.int8, partial(residual, relu=True))


def chains(dtype: torch.dtype, *, full_range: bool = False) -> Iterator[Entry]:
    """The chain kernel at every width and dtype that it is used for.

    With ``full_range``, in int8, zero is stored as -128: every layer saturates in place of its ReLU.
    """
    relu = not full_range
    for width in (64, 128):
        for stride in (1, 2):
            for following in (None, width, 2 * width):  # the next stage's is twice as wide
                if not chain.chain_fits(width, dtype, following):
                    continue
                conv2 = folded(width, width, 3, dtype, relu=relu)
                if full_range:
                    conv2 = replace(conv2, zero_sums=table(width))
                conv3 = folded(4 * width, width, 1, dtype, relu=relu)
                conv1 = None if following is None else folded(following, 4 * width, 1, dtype, relu=relu)
                call = partial(
                    chain.chain,
                    activation(Plane(32, width, 28), dtype),
                    conv2,
                    conv3,
                    activation(Plane(32, 4 * width, 28 // stride), dtype),
                    conv1,
                    stride=stride,
                    residual_scale=0.5 if dtype == torch.int8 else None,
                )
                following_form = {None: "", width: " + next 1x1", 2 * width: " + next 1x1 twice as wide"}[
                    following
                ]
                form = f"{width}{'/2' if stride == 2 else ''}{following_form}"
                yield Entry(f"chain {form}{', full range' if full_range else ''}", dtype, call)


def heads(dtype: torch.dtype) -> Iterator[Entry]:
    """Average pool and fully connected layer."""
    for classes, plane in ((1000, Plane(32, 2048, 7)), (10, Plane(32, 64, 8))):
        x, w = activation(plane, dtype), torch.empty((classes, plane.c), dtype=dtype, device="meta")
        if dtype == torch.int8:
            call = partial(head.pool_fc_int8, x, 0.5, w, vector(classes), vector(classes))
        else:
            call = partial(head.pool_fc, x, w, vector(classes))
        yield Entry(f"head {plane.c}->{classes}", dtype, call)


def stems(dtype: torch.dtype) -> Iterator[Entry]:
    """A network's first layers, of ImageNet and of CIFAR."""
    for name, (image, w, conv) in _stems(dtype).items():
        bias, pool = vector(w.shape[0]), conv.stride == 2
        yield Entry(
            f"stem_inference {name}", dtype, partial(stem.stem_inference, image, w, bias, conv, pool=pool)
        )
        yield Entry(f"stem_conv_moments {name}", dtype, partial(stem.stem_conv_moments, image, w, conv))
        yield Entry(f"stem_conv {name}", dtype, partial(stem.stem_conv, image, w, conv))
        yield Entry(f"stem passes {name}", dtype, partial(_stem_passes, image, w, conv, pool=pool))


def int8_stems() -> Iterator[Entry]:
    """Stems of int8 inference, with a ReLU and with saturation in its place."""
    for name, (image, w, conv) in _stems(torch.int8).items():
        c, pool = w.shape[0], conv.stride == 2
        call = partial(stem.stem_inference, image, w, vector(c), conv, pool=pool, scale=vector(c))
        yield Entry(f"stem_inference {name}", torch.int8, call)
        yield Entry(f"stem_inference {name}, full range", torch.int8, partial(call, relu=False))


def images() -> Iterator[Entry]:
    """Stems that take an application's image."""
    norm = partial(Take, vector(3), vector(3))
    undone: dict[str, Any] = {"undo_factor": vector(3), "undo_offset": vector(3), "margin": 3}
    ways = {
        "int8 of a float image": (torch.int8, torch.float32, Take(scale=0.5)),
        "int8 of a float image, exact": (torch.int8, torch.float32, Take(scale=0.5, **undone)),
        "int8 of pixels, exact": (torch.int8, torch.uint8, norm(scale=0.5, **undone)),
        "int8 of pixels": (torch.int8, torch.uint8, norm(scale=0.5)),
        "int8 of pixels, fp16 before": (torch.int8, torch.uint8, norm(scale=0.5, rest=torch.float16)),
        "fp16 of pixels": (torch.float16, torch.uint8, norm(rest=torch.float16)),
        "fp32 of pixels": (torch.float32, torch.uint8, norm()),
    }
    for name, (dtype, given, how) in ways.items():
        _, w, conv = _stems(dtype)["7x7/2"]
        c, conv = w.shape[0], replace(conv, padding=conv.padding - how.margin)
        call = partial(stem.stem_inference, _image(224, given), w, vector(c), conv, take=how)
        scaled = partial(call, scale=vector(c)) if dtype == torch.int8 else call
        yield Entry(f"stem_inference {name}", dtype, scaled)


def shortcuts() -> Iterator[Entry]:
    """CIFAR's shortcut without parameters."""
    for dtype in (torch.int8, torch.bfloat16, torch.float32):
        call = partial(shortcut.widen, activation(NARROW, dtype), stride=2, before=8, after=8)
        yield Entry("widen /2", dtype, call)
        if dtype == torch.int8:
            yield Entry("widen /2, full range", dtype, partial(call, zero_point=-128))


def _stems(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor, Conv]]:
    """Image, weight and window by name."""
    return {
        "7x7/2": (_image(224, dtype), _stem_weight(64, 7, dtype), Conv(7, 7, stride=2, padding=3)),
        "3x3": (_image(32, dtype), _stem_weight(16, 3, dtype), Conv(3, 3, padding=1)),
    }


def _image(side: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((128, 3, side, side), dtype=dtype, device="meta")


def _stem_weight(k: int, side: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((k, 3, side, side), dtype=dtype, device="meta")


def passes_over_memory(dtype: torch.dtype) -> Iterator[Entry]:
    """The passes between convolutions."""
    for plane in (WIDE, NARROW):
        x, vectors = activation(plane, dtype), batch_norm(plane.c)
        coefficients = torch.empty((3, plane.c), device="meta")
        yield Entry(f"activate{plane.label}", dtype, partial(passes.activate, x, vectors))
        yield Entry(f"join{plane.label}", dtype, partial(passes.join, x, vectors, x))
        yield Entry(f"join{plane.label}, projection", dtype, partial(passes.join, x, vectors, x, vectors))
        yield Entry(f"entry{plane.label}", dtype, partial(passes.entry, x, x, x, vectors))
        yield Entry(
            f"entry{plane.label}, projection", dtype, partial(passes.entry, x, x, x, vectors, x, vectors)
        )
        yield Entry(
            f"bn_backward{plane.label}", dtype, partial(passes.bn_backward, x, x, vectors, coefficients)
        )


def small_vectors() -> Iterator[Entry]:
    """Batch norm's statistics, which are fp32 whatever the activations are."""
    c, fp32 = 256, torch.float32
    affine, running = (vector(c), vector(c), 1e-5), (vector(c), vector(c))
    for tiles in (16, statistics.MOST_TILES, 2 * statistics.MOST_TILES):
        for name, dtype in (("", torch.float32), (" of an fp32 activation", torch.float64)):
            rows = torch.empty((2, tiles, c), dtype=dtype, device="meta")
            partials = Partials(rows, 128, tiles * 128)
            forms: dict[str, Callable[[], object]] = {
                "finalize": partial(statistics.finalize, partials, *affine, running, 0.1),
                "finalize, untracked,": partial(statistics.finalize, partials, *affine, None, 0.1),
                "finalize, with a projection's,": partial(
                    statistics.finalize_all, [statistics.Finalized(partials, *affine, running, 0.1)] * 2
                ),
                "merge": partial(statistics.merge, partials),
            }
            yield from (Entry(f"{form} of {tiles} tiles{name}", fp32, call) for form, call in forms.items())
        yield from _norm_gradients(tiles, c)
    counts = torch.empty(4, dtype=torch.float64, device="meta")
    gathered = Partials(torch.empty((2, 4, c), dtype=torch.float64, device="meta"), 0, 64, counts)
    shared = partial(statistics.finalize, gathered, *affine, running, 0.1)
    yield Entry("finalize of several processes", fp32, shared)
    yield Entry(
        "frozen", fp32, partial(statistics.frozen, (vector(c), vector(c)), vector(c), vector(c), 1e-5)
    )


def _norm_gradients(tiles: int, c: int) -> Iterator[Entry]:
    """The small sums of a backward pass: alone, frozen, of two layers, and with those of split reductions."""
    sums = Partials(torch.empty((3, tiles, c), device="meta"), 128, tiles * 128)
    yield Entry(f"sums of {tiles} tiles", torch.float32, partial(statistics.sums, sums))
    one, split = (batch_norm(c), False), SplitSum(torch.empty((8, c * c), device="meta"), vector(c * c))
    call = partial(statistics.norm_gradients, sums)
    for name, run in {
        "": partial(call, [one]),
        ", frozen": partial(call, [(batch_norm(c), True)]),
        ", projection": partial(call, [one, one], [split]),
        ", after a projection": partial(call, [one], [split, split]),
    }.items():
        yield Entry(f"norm_gradients of {tiles} tiles{name}", torch.float32, run)


def _stem_passes(image: Tensor, w: Tensor, conv: Conv, *, pool: bool) -> None:
    y, packed = stem.stem_conv(image, w, conv)
    vectors, coefficients = batch_norm(w.shape[0]), torch.empty((3, w.shape[0]), device="meta")
    if pool:
        z, index = stem.stem_pool(y, vectors)
        stem.stem_pool_sums(z, index, y, vectors)
        stem.stem_pool_backward(z, index, y, vectors, coefficients)
    else:
        z = passes.activate(y, vectors)
        stem.stem_activate_sums(z, y, vectors)
        stem.stem_activate_backward(z, y, vectors, coefficients)
    stem.stem_wgrad(packed, y, conv, image.shape[1])

"""Steps: the fused operations of a plan. Tensors have the graph's names.

In INT8 a name stands for the quantized tensor, whose real value is scale * integer. Without a ReLU it saturates to
[-128, 127], which acts as a ReLU where zero is stored as -128 (docs/adr/0012-relu-by-saturation.md). A convolution
``c`` has the weights ``c.weight``, ``c.bias`` and, in INT8, ``c.scale`` and sometimes ``c.zero_sums``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from fused_kernels.operands.geometry import Conv

Rest = Literal["float32", "float16"]
FACTOR, OFFSET = "input.factor", "input.offset"
"""Weights of a stem that normalizes pixels."""
UNDO_FACTOR, UNDO_OFFSET = "input.undo_factor", "input.undo_offset"
"""Weights of a stem that undoes the normalization, so that it reads pixels."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything in a plan: immutable, and strict about the fields that it is read from."""


class Window(Record, frozen=True):
    """Window [r, s] of a convolution, with one stride and one padding for both axes."""

    r: int
    s: int
    stride: int
    padding: int

    def conv(self) -> Conv:
        """The window as the kernels' geometry has it; needs the fused kernels, which a runtime does not."""
        from fused_kernels.operands.geometry import Conv

        return Conv(self.r, self.s, self.stride, self.padding)


class Stem(Record, frozen=True, tag="stem", tag_field="kind"):
    """The first convolution (+ ReLU) on the image, which it normalizes and quantizes where the graph does."""

    name: str
    output: str
    window: Window
    pool: bool
    """Whether a max pool 3x3/2 follows."""
    normalized: bool
    """Whether the image is multiplied by ``input.factor`` and ``input.offset`` is added."""
    image_scale: float | None
    """Scale of the quantized image; None in floating point."""
    rest: Rest
    """Type that each step of the normalization is rounded to."""
    relu: bool = True
    """Always true in floating point."""
    margin: int = 0
    """Zeros around the normalized image, where the stem reads pixels (docs/adr/0014-exact-pixels.md)."""
    undone: bool = False
    """Whether the image is then multiplied by ``input.undo_factor`` and ``input.undo_offset`` is added."""


class Convolution(Record, frozen=True, tag="convolution", tag_field="kind"):
    """Convolution + bias (+ residual) (+ ReLU), requantized in INT8."""

    name: str
    input: str
    output: str
    window: Window
    relu: bool
    residual: str | None = None
    residual_scale: float | None = None
    """Factor from units of the residual to units of the output, in INT8."""
    zero_sums: bool = False
    """Whether ``zero_sums`` are added to its sums, because it pads an input in which -128 stands for zero."""


class Chain(Record, frozen=True, tag="chain", tag_field="kind"):
    """A bottleneck's 3x3, its last 1x1 with the residual, and the next block's first 1x1."""

    name: str
    input: str
    conv2: str
    conv3: str
    conv1: str | None
    """First convolution of the next block, where it fits."""
    stride: int
    residual: str
    residual_scale: float | None
    output: str
    following: str | None
    """Output of ``conv1``."""
    without_relu: tuple[str, ...] = ()
    """Its convolutions without a ReLU; only in INT8."""
    zero_sums: bool = False
    """Whether ``conv2`` has ``zero_sums``, see ``Convolution``."""


class Widen(Record, frozen=True, tag="widen", tag_field="kind"):
    """Shortcut without parameters: every ``stride``-th pixel, between channels of zeros."""

    name: str
    input: str
    output: str
    stride: int
    before: int
    after: int
    zero_point: int = 0
    """The integer that stands for zero in the input."""


class Head(Record, frozen=True, tag="head", tag_field="kind"):
    """Global average pool and fully connected layer, which makes the logits."""

    name: str
    input: str
    pool_scale: float | None
    """Factor from a channel's sum to units of the pooled value, in INT8."""


Step = Stem | Convolution | Chain | Widen | Head


def reads(step: Step) -> tuple[str, ...]:
    """Names of the tensors that a step reads; a stem reads only the images."""
    if isinstance(step, Stem):
        return ()
    residual = step.residual if isinstance(step, Convolution | Chain) else None
    return (step.input,) if residual is None else (step.input, residual)


def writes(step: Step) -> tuple[str, ...]:
    """Names of the tensors that a step makes; a head makes only the logits."""
    if isinstance(step, Head):
        return ()
    following = step.following if isinstance(step, Chain) else None
    return (step.output,) if following is None else (step.output, following)


def weights_of(step: Step, *, integer: bool) -> tuple[str, ...]:
    """Names of the weights of a step; ``integer`` in INT8."""
    if isinstance(step, Widen):
        return ()
    layers = [step.name]
    if isinstance(step, Chain):
        layers = [name for name in (step.conv2, step.conv3, step.conv1) if name is not None]
    kinds = ("weight", "bias", "scale") if integer else ("weight", "bias")
    named = [f"{layer}.{kind}" for layer in layers for kind in kinds]
    if isinstance(step, Stem):
        named += [*(FACTOR, OFFSET) * step.normalized, *(UNDO_FACTOR, UNDO_OFFSET) * step.undone]
    elif isinstance(step, Convolution | Chain) and step.zero_sums:
        named.append(f"{layers[0]}.zero_sums")
    return tuple(named)


def fused_adds(steps: tuple[Step, ...]) -> int:
    """Number of steps that add a residual."""
    return sum(isinstance(step, Convolution | Chain) and step.residual is not None for step in steps)

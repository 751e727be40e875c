"""Steps on torch tensors, through the operations of ``fused_kernels``: one walk for values and for launches.

On CPU tensors the operations' references compute: integer sums are exact, and what follows them is fp32, one rounding
for each operation, in the kernels' order. On meta tensors nothing is computed, and every launch is recorded. So what
is compiled, what a GPU runs and what plain PyTorch checks come from the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fused_kernels.operands.image import Take
from fused_kernels.operands.packed_image import unpack_weight
from fused_kernels.ops.chain import Folded, chain
from fused_kernels.ops.head import pool_fc, pool_fc_int8
from fused_kernels.ops.inference import conv_bias, conv_int8
from fused_kernels.ops.shortcut import widen
from fused_kernels.ops.stem import stem_inference
from rescompile.backends.triton.groups import conv_of
from rescompile.backends.triton.steps import (
    FACTOR,
    OFFSET,
    UNDO_FACTOR,
    UNDO_OFFSET,
    Chain,
    Convolution,
    Head,
    Stem,
    Step,
    Widen,
    reads,
    writes,
)

_REST = {"float32": torch.float32, "float16": torch.float16}
Observer = Callable[[int, Step], None]
"""Called with every step and its position before it runs."""


class Walk:
    """Steps with their weights; call it with images.

    Args:
        steps: in the order of execution.
        weights: as ``lower.Network`` has them, on the CPU or on the meta device.
    """

    def __init__(self, steps: Sequence[Step], weights: dict[str, Tensor]) -> None:
        self.steps = tuple(steps)
        self._weights = weights
        last: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            last.update(dict.fromkeys((*reads(step), *writes(step)), index))
        self._last = last
        self.tensors: dict[str, Tensor] = {}
        """Those that a later step still reads."""

    def __call__(self, images: Tensor, *, before: Observer | None = None) -> Tensor:
        """Logits fp32 [N, classes] of ``images``: float32 [N, C, H, W], or uint8 [N, H, W, C] where normalized."""
        logits: Tensor | None = None
        self.tensors = {}
        for index, step in enumerate(self.steps):
            if before is not None:
                before(index, step)
            made = self.run(step, images, self.tensors)
            if isinstance(step, Head):
                logits = made[0]
            self.tensors.update(zip(writes(step), made, strict=False))
            for name in (*reads(step), *writes(step)):
                if self._last[name] == index:
                    self.tensors.pop(name, None)
        if logits is None:
            raise ValueError("these steps have no head")
        return logits

    def run(self, step: Step, images: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What one step makes, in the order of ``steps.writes``; of a head, the logits."""
        if isinstance(step, Stem):
            return (self._stem(step, images),)
        if isinstance(step, Widen):
            x = tensors[step.input]
            return (
                widen(
                    x,
                    stride=step.stride,
                    before=step.before,
                    after=step.after,
                    zero_point=step.zero_point,
                ),
            )
        if isinstance(step, Head):
            return (self._head(step, tensors[step.input]),)
        residual = None if step.residual is None else tensors[step.residual]
        if isinstance(step, Convolution):
            return (self._convolution(step, tensors[step.input], residual),)
        return self._chain(step, tensors[step.input], tensors[step.residual])

    def _stem(self, step: Stem, images: Tensor) -> Tensor:
        conv = conv_of(step.window)
        image = images.permute(0, 3, 1, 2) if step.normalized else images
        w = unpack_weight(self._weights[f"{step.name}.weight"], conv, image.shape[1])
        factor, offset, undo_factor, undo_offset = (
            self._weights.get(name) for name in (FACTOR, OFFSET, UNDO_FACTOR, UNDO_OFFSET)
        )
        how = Take(factor, offset, step.image_scale, _REST[step.rest], undo_factor, undo_offset, step.margin)
        scale, bias = self._vectors(step.name)
        return stem_inference(image, w, bias, conv, pool=step.pool, scale=scale, relu=step.relu, take=how)

    def _convolution(self, step: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
        w, conv = self._krsc(step.name), conv_of(step.window)
        scale, bias = self._vectors(step.name)
        if scale is None:
            return conv_bias(x, w, bias, conv, relu=step.relu, residual=residual)
        return conv_int8(
            x,
            w,
            scale,
            bias,
            conv,
            relu=step.relu,
            residual=residual,
            residual_scale=step.residual_scale,
            zero_sums=self._zero_sums(step, step.name),
        )

    def _chain(self, step: Chain, x: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        conv2, conv3 = self._folded(step, step.conv2), self._folded(step, step.conv3)
        conv1 = None if step.conv1 is None else self._folded(step, step.conv1)
        made = chain(x, conv2, conv3, residual, conv1, stride=step.stride, residual_scale=step.residual_scale)
        return tuple(tensor for tensor in made if tensor is not None)

    def _head(self, step: Head, x: Tensor) -> Tensor:
        w = self._weights[f"{step.name}.weight"]
        scale, bias = self._vectors(step.name)
        if scale is None or step.pool_scale is None:
            return pool_fc(x, w, bias)
        return pool_fc_int8(x, step.pool_scale, w, scale, bias)

    def _folded(self, step: Chain, name: str) -> Folded:
        scale, bias = self._vectors(name)
        return Folded(
            self._krsc(name),
            bias,
            scale,
            relu=name not in step.without_relu,
            zero_sums=self._zero_sums(step, name) if name == step.conv2 else None,
        )

    def _zero_sums(self, step: Convolution | Chain, name: str) -> Tensor | None:
        return self._weights[f"{name}.zero_sums"] if step.zero_sums else None

    def _krsc(self, name: str) -> Tensor:
        """[K, C, R, S] in KRSC memory."""
        return self._weights[f"{name}.weight"].permute(0, 3, 1, 2)

    def _vectors(self, name: str) -> tuple[Tensor | None, Tensor]:
        return self._weights.get(f"{name}.scale"), self._weights[f"{name}.bias"]

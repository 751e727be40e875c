"""Steps executed on torch tensors by the operations of ``fused_kernels``, for their values or for their launches.

On CPU tensors the operations' references compute: integer sums are exact, and what follows them is fp32, one rounding
for each operation, in the kernels' order. On meta tensors nothing is computed, and every launch is recorded. So what
is compiled, what a GPU runs and what plain PyTorch checks come from the same calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fused_kernels.operands.image import Take
from fused_kernels.operands.packed_image import unpack_weight
from fused_kernels.ops.chain import Folded, chain
from fused_kernels.ops.head import pool_fc, pool_fc_int8
from fused_kernels.ops.inference import conv_bias, conv_int8
from fused_kernels.ops.shortcut import widen
from fused_kernels.ops.stem import stem_inference
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


class StepExecutor:
    """Steps with their weights; call it with images.

    Args:
        steps: in the order of execution.
        weights: as in ``Network``, on the CPU or on the meta device.
    """

    def __init__(self, steps: Sequence[Step], weights: dict[str, Tensor]) -> None:
        self.steps, self._weights = tuple(steps), weights
        self._last = {name: at for at, step in enumerate(steps) for name in (*reads(step), *writes(step))}
        """Position of the last step that uses a tensor."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits fp32 [N, classes] of ``images``: float32 [N, C, H, W], or uint8 [N, H, W, C] where normalized."""
        for step, made in self.walk(images):
            if isinstance(step, Head):
                return made[0]
        raise ValueError("these steps have no head")

    def walk(self, images: Tensor) -> Iterator[tuple[Step, tuple[Tensor, ...]]]:
        """Every step with what it makes; a tensor is dropped after its last reader."""
        tensors: dict[str, Tensor] = {}
        for index, step in enumerate(self.steps):
            made = self.run(step, images, tensors)
            yield step, made
            tensors.update(zip(writes(step), made, strict=False))
            for name in (*reads(step), *writes(step)):
                if self._last[name] == index:
                    tensors.pop(name, None)

    def run(self, step: Step, images: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The tensors that one step makes, in the order of ``steps.writes``; for a head, the logits."""
        match step:
            case Stem():
                return (self._stem(step, images),)
            case Widen(stride=stride, before=before, after=after, zero_point=zero_point):
                x = tensors[step.input]
                return (widen(x, stride=stride, before=before, after=after, zero_point=zero_point),)
            case Head():
                return (self._head(step, tensors[step.input]),)
            case Convolution(residual=residual):
                added = None if residual is None else tensors[residual]
                return (self._convolution(step, tensors[step.input], added),)
            case Chain():
                return self._chain(step, tensors[step.input], tensors[step.residual])

    def _stem(self, step: Stem, images: Tensor) -> Tensor:
        conv = step.window.conv()
        image = images.permute(0, 3, 1, 2) if step.normalized else images
        w = unpack_weight(self._weights[f"{step.name}.weight"], conv, image.shape[1])
        factor, offset, undo_factor, undo_offset = (
            self._weights.get(name) for name in (FACTOR, OFFSET, UNDO_FACTOR, UNDO_OFFSET)
        )
        take = Take(factor, offset, step.image_scale, _REST[step.rest], undo_factor, undo_offset, step.margin)
        scale, bias = self._vectors(step.name)
        return stem_inference(image, w, bias, conv, pool=step.pool, scale=scale, relu=step.relu, take=take)

    def _convolution(self, step: Convolution, x: Tensor, residual: Tensor | None) -> Tensor:
        w, conv = self._krsc(step.name), step.window.conv()
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
        """The weight as [K, C, R, S] in KRSC memory."""
        return self._weights[f"{name}.weight"].permute(0, 3, 1, 2)

    def _vectors(self, name: str) -> tuple[Tensor | None, Tensor]:
        return self._weights.get(f"{name}.scale"), self._weights[f"{name}.bias"]

"""A program for one batch size: the launches of every step, recorded on meta tensors and placed in an arena.

This needs neither a GPU nor values. Tensors of launches are told apart by their storage: what a launch writes is in the
arena, except for the logits; what launches only read is a weight or the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_kernels.choice import choosing, default_tile
from fused_kernels.launch import Launch, Out, implementation, recording
from rescompile.backends.triton.plan import ALIGNMENT, Address, Images, Logits, Memory, Stored
from rescompile.backends.triton.planning.arena import Life, Placement, place
from rescompile.backends.triton.step_executor import StepExecutor
from rescompile.backends.triton.steps import Stem, Step

Storage = int


@dataclass(frozen=True)
class Recorded:
    """One launch of a step."""

    step: int
    """Index of the step."""
    launch: Launch


@dataclass(frozen=True)
class Recording:
    """All launches for one batch size, and the address of every tensor in them."""

    batch: int
    launches: tuple[Recorded, ...]
    addresses: dict[Storage, Address]
    placement: Placement

    def address(self, tensor: Tensor) -> Address:
        """The address of a tensor of one of the launches."""
        return self.addresses[storage_of(tensor)]


def record(
    steps: Sequence[Step], weights: dict[str, Tensor], image: Tensor, *, batch: int, shared_limit: int
) -> Recording:
    """Record ``steps`` on ``batch`` images.

    Args:
        steps: in the order of execution.
        weights: meta tensors.
        image: one image without its batch dimension, a meta tensor.
        batch: images at once.
        shared_limit: bytes of shared memory of a program on the target, which decide on tiles.
    """
    images = torch.empty((batch, *image.shape), dtype=image.dtype, device="meta")
    launches: list[Recorded] = []
    with (
        implementation("kernels"),
        choosing(lambda problem: default_tile(problem, shared=shared_limit)),
        recording() as recorded,
    ):
        for index, (_, made) in enumerate(StepExecutor(steps, weights).walk(images)):
            launches += [Recorded(index, launch) for launch in recorded[len(launches) :]]
            logits = made[0]  # of the last step, the head
    known: dict[Storage, Address] = {storage_of(tensor): Stored(name) for name, tensor in weights.items()}
    known |= {storage_of(images): Images(), storage_of(logits): Logits()}
    lives = _lives(launches, known)
    placement = place(list(lives.values()), alignment=ALIGNMENT)
    for (storage, life), offset in zip(lives.items(), placement.offsets, strict=True):
        known[storage] = Memory(offset, life.bytes)
    _name_packed(launches, steps, known)
    return Recording(batch, tuple(launches), known, placement)


def storage_of(tensor: Tensor) -> Storage:
    """Identity of a tensor's memory, as long as it exists."""
    return int(tensor.untyped_storage()._cdata)


def _lives(launches: Sequence[Recorded], known: dict[Storage, Address]) -> dict[Storage, Life]:
    """The tensors that launches write, except for those with a known place."""
    lives: dict[Storage, Life] = {}
    for index, recorded in enumerate(launches):
        for tensor, written in recorded.launch.tensors():
            storage = storage_of(tensor)
            if storage in lives:
                lives[storage] = Life(lives[storage].bytes, lives[storage].first, index)
            elif written and storage not in known:
                lives[storage] = Life(tensor.numel() * tensor.element_size(), index, index)
    return lives


def _name_packed(launches: Sequence[Recorded], steps: Sequence[Step], known: dict[Storage, Address]) -> None:
    """Name the weight that each stem would pack again: the plan stores it packed."""
    for recorded in launches:
        step, weight = steps[recorded.step], recorded.launch.arguments.get("w_ptr")
        if isinstance(step, Stem) and isinstance(weight, Tensor):
            known.setdefault(storage_of(weight), Stored(f"{step.name}.weight"))


def tensor_of(value: object) -> Tensor | None:
    """The tensor in an argument of a launch; None where the argument is something else."""
    if isinstance(value, Out):
        return value.tensor
    return value if isinstance(value, Tensor) else None

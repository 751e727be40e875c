"""GPUs that kernels are compiled for, and the shared memory that a program has on each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

_LIMITS = {80: 166_912, 87: 166_912} | dict.fromkeys((90, 100, 103, 110), 232_448)
"""Bytes that one program may use, by compute capability, where more than ``SMALLEST``.

They are 1 KB less than what NVIDIA's documentation gives a processor.
"""
SMALLEST = 101_376
"""Bytes on every other capability, such as 86, 89, 120 and 121."""
HOPPER = _LIMITS[90]


def limit_of(capability: int) -> int:
    """Bytes of shared memory that a program may use on a GPU of ``capability`` (90 is 9.0)."""
    return _LIMITS.get(capability, SMALLEST)


def capability_of(device: torch.device) -> int:
    """The compute capability of a GPU: 90 is 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def limit_on(device: torch.device) -> int:
    """``limit_of`` a device; a Hopper's where there is no GPU, as under the interpreter or on the meta device."""
    return limit_of(capability_of(device)) if device.type == "cuda" else HOPPER


@dataclass(frozen=True)
class Target:
    """One compute capability to compile for."""

    capability: int
    """90 is 9.0."""

    @property
    def name(self) -> str:
        """``sm_90``."""
        return f"sm_{self.capability}"

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that one program may use."""
        return limit_of(self.capability)


TARGETS = {target.name: target for target in map(Target, (80, 86, 89, 90, 100, 120))}

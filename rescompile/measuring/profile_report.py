"""The result of ``rescompile profile``: the time of each layer and block of engines of one network."""

from __future__ import annotations

from typing import Literal

import msgspec

from rescompile.measuring.bench import EngineFacts
from rescompile.measuring.origin import Origin
from rescompile.measuring.roofline import Roofline
from rescompile.measuring.timing import Timing
from rescompile.report import BlockWork, JsonReport

FORMAT: Literal["rescompile-profile-1"] = "rescompile-profile-1"


class LayerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One layer and its median time."""

    name: str
    block: str
    kind: str
    implementation: str
    precision: str
    ms: float


class BlockProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One block of one engine."""

    block: str
    ms: float
    """Median over the rounds of the sum of its layers' means."""
    launches: int
    """Layers that were executed."""
    reformat_ms: float
    """Part of ``ms``: layers that only change layout or type."""
    float_layers: tuple[str, ...]
    """Convolutions and classifier that did not run in an integer type; empty where the library does not say."""
    work: BlockWork
    memory_ms: float
    arithmetic_ms: float

    @property
    def floor_ms(self) -> float:
        """The time that operations or bytes need, whichever is longer."""
        return max(self.memory_ms, self.arithmetic_ms)

    @property
    def bound(self) -> Literal["memory", "arithmetic"]:
        """Which of the two is longer."""
        return "memory" if self.memory_ms > self.arithmetic_ms else "arithmetic"


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One engine."""

    engine: EngineFacts
    wall: Timing
    """The engine's calls, without performance counters."""
    layers_ms: float
    """Median over the rounds of the sum of all layers' means, with counters."""
    blocks: tuple[BlockProfile, ...]
    layers: tuple[LayerProfile, ...]


class ProfileReport(JsonReport, frozen=True, kw_only=True):
    """Engines of one network, side by side."""

    format: Literal["rescompile-profile-1"] = FORMAT
    batch: int
    origin: Origin
    roofline: Roofline
    engines: tuple[EngineProfile, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]

"""The GPUs that kernels are compiled for."""

from __future__ import annotations

from dataclasses import dataclass

from fused_kernels.shared_memory import limit_of


@dataclass(frozen=True)
class Target:
    """One compute capability."""

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

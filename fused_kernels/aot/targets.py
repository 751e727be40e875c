"""The GPUs that are compiled for, and what a good kernel looks like on each."""

from __future__ import annotations

from dataclasses import dataclass

from fused_kernels.shared_memory import limit_of

TENSOR_MEMORY_COLUMNS = 512
"""Of a Blackwell processor."""


@dataclass(frozen=True)
class Target:
    """One compute capability."""

    capability: int
    example: str
    """A GPU that has it."""
    float_instructions: frozenset[str]
    """Tensor-core instructions for 16-bit operands; any of them will do."""
    int8_instructions: frozenset[str]
    spills_fail: bool = False
    """Whether a register spill is an error: it is where the kernels are tuned for."""

    @property
    def name(self) -> str:
        """``sm_90``."""
        return f"sm_{self.capability}"

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that one program may use."""
        return limit_of(self.capability)


_MMA = frozenset({"HMMA"}), frozenset({"IMMA"})

TARGETS = {
    target.name: target
    for target in (
        Target(80, "A100", *_MMA),
        Target(86, "RTX 3090", *_MMA),
        Target(89, "L40S", *_MMA),
        Target(90, "H100", frozenset({"HGMMA"}), frozenset({"IGMMA"}), spills_fail=True),
        # Blackwell's tensor memory has no path for int8 in Triton, which multiplies it as Ampere does
        Target(100, "B200", frozenset({"UTCHMMA"}), frozenset({"UTCIMMA", "IMMA"})),
        Target(120, "RTX 5090", *_MMA),
    )
}

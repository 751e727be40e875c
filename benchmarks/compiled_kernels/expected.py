"""Requirements that a good kernel meets on each target."""

from __future__ import annotations

from dataclasses import dataclass

TENSOR_MEMORY_COLUMNS = 512
"""Columns of tensor memory that a Blackwell processor has."""


@dataclass(frozen=True)
class Expected:
    """The expectations for one target."""

    example: str
    """A GPU with this capability."""
    float_instructions: frozenset[str]
    """Tensor-core instructions for 16-bit operands; any of them will do."""
    int8_instructions: frozenset[str]
    most_spilled: int | None = None
    """Bytes of registers that a kernel may spill; any number but on the target that the kernels are tuned for."""


_MMA = frozenset({"HMMA"}), frozenset({"IMMA"})

EXPECTED = {
    "sm_80": Expected("A100", *_MMA),
    "sm_86": Expected("RTX 3090", *_MMA),
    "sm_89": Expected("L40S", *_MMA),
    "sm_90": Expected("H100", frozenset({"HGMMA"}), frozenset({"IGMMA"}), most_spilled=16),
    # Triton has no path for int8 through Blackwell's tensor memory and multiplies it as on Ampere
    "sm_100": Expected("B200", frozenset({"UTCHMMA"}), frozenset({"UTCIMMA", "IMMA"})),
    "sm_120": Expected("RTX 5090", *_MMA),
}

"""What ptxas made of a kernel, read from its cubin with the disassembler that comes with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_REGISTERS = re.compile(r"\bREG:(\d+)")
_TENSOR_CORE = {"HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCIMMA", "UTCQMMA", "QGMMA"}
_SPILL = {"STL", "LDL"}


@dataclass(frozen=True)
class Machine:
    """Machine code in numbers."""

    registers: int
    """32-bit registers a thread."""
    spills: int
    """Instructions that store registers to local memory or load them back."""
    tensor_core: dict[str, int]
    """Tensor-core instructions by name."""
    async_copies: int
    """16-byte copies from global to shared memory that need no register."""


def read_cubin(cubin: bytes, cuobjdump: str) -> Machine:
    """Disassemble ``cubin``; ``cuobjdump`` is the program to do it with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run(
            [cuobjdump, "-sass", "-res-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    return read_listing(text)


def read_listing(text: str) -> Machine:
    """The numbers of one kernel from cuobjdump's listing."""
    found = Counter(_INSTRUCTION.findall(text))
    tensor_core: Counter[str] = Counter()
    spills = copies = 0
    for opcode, count in found.items():
        name, *modifiers = opcode.split(".")
        if name in _TENSOR_CORE:
            tensor_core[name] += count
        spills += count if name in _SPILL else 0
        copies += count if name == "LDGSTS" and "128" in modifiers else 0
    registers = _REGISTERS.search(text)
    assert registers is not None, "cuobjdump -res-usage reports no registers"
    return Machine(int(registers[1]), spills, dict(tensor_core), copies)

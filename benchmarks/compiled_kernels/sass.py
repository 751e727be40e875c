"""Reading machine code: registers, spills and instructions of cubins, by the tools that come with Triton."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

INSTRUCTION_BYTES = 16
TENSOR_CORE = {"HMMA", "IMMA", "HGMMA", "IGMMA", "UTCHMMA", "UTCIMMA"}
_SPILL = {"STL", "LDL"}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_REGISTERS = re.compile(r"\bREG:(\d+)")


@dataclass(frozen=True)
class Machine:
    """Machine code in numbers."""

    spills: int = 0
    """Instructions that store registers to local memory or load them back."""
    tensor_core: dict[str, int] = field(default_factory=dict)
    """Tensor-core instructions by name."""
    async_copies: int = 0
    """16-byte copies from global to shared memory that pass no register."""
    spilled_bytes: int = 0
    """Bytes that a thread's instructions store to local memory."""


def disassemble(cubins: Sequence[bytes], capability: int) -> list[Machine]:
    """Read the machine code of several cubins of one architecture in one run of nvdisasm, which is slow to start."""
    if not cubins:
        return []
    codes = [machine_code(cubin) for cubin in cubins]
    return read_listing(_listing(b"".join(codes), capability), [len(code) for code in codes])


def listing_of(cubin: bytes, capability: int) -> str:
    """nvdisasm's listing of one kernel."""
    return _listing(machine_code(cubin), capability)


def _listing(code: bytes, capability: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code"
        path.write_bytes(code)
        architecture = f"SM{capability}a" if capability >= 90 else f"SM{capability}"
        return _run(_tool("nvdisasm"), "--no-dataflow", "--binary", architecture, str(path))


def read_listing(listing: str, sizes: Sequence[int]) -> list[Machine]:
    """The numbers of pieces of code that follow each other, of ``sizes`` bytes, from nvdisasm's listing of them all."""
    found: list[Counter[str]] = [Counter() for _ in sizes]
    piece, end = 0, sizes[0]
    for line in _LINE.finditer(listing):
        while int(line[1], 16) >= end:
            piece += 1
            end += sizes[piece]
        found[piece][line[2]] += 1
    for counts, size in zip(found, sizes, strict=True):
        if counts.total() * INSTRUCTION_BYTES != size:
            raise ValueError(f"nvdisasm lists {counts.total()} instructions of {size // INSTRUCTION_BYTES}")
    return [_machine(counts) for counts in found]


def opcodes(listing: str) -> list[str]:
    """The instructions of nvdisasm's listing of one kernel in order, without modifiers and without NOPs."""
    names = [line[2].split(".")[0] for line in _LINE.finditer(listing)]
    return [name for name in names if name != "NOP"]


def registers_of(cubin: bytes) -> int:
    """32-bit registers a thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        found = _REGISTERS.search(_run(_tool("cuobjdump"), "--dump-resource-usage", str(path)))
    assert found is not None, "cuobjdump -res-usage reports no registers"
    return int(found[1])


def machine_code(cubin: bytes) -> bytes:
    """The ``.text`` sections of an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + entry * index) for index in range(count)]
    strings = sections[names][4]
    return b"".join(
        cubin[offset : offset + size]
        for name, _, _, _, offset, size in sections
        if cubin.startswith(b".text.", strings + name)
    )


def _machine(counts: Counter[str]) -> Machine:
    tensor_core: Counter[str] = Counter()
    spills = spilled = copies = 0
    for opcode, count in counts.items():
        name, *modifiers = opcode.split(".")
        tensor_core[name] += count if name in TENSOR_CORE else 0
        spills += count if name in _SPILL else 0
        width = next((int(modifier) for modifier in modifiers if modifier.isdecimal()), 32)
        spilled += count * width // 8 if name == "STL" else 0
        copies += count if name == "LDGSTS" and "128" in modifiers else 0
    return Machine(spills, dict(+tensor_core), copies, spilled)


def _tool(name: str) -> str:
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()[:200]}")
    return done.stdout

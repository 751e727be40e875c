"""What the model reads off a kernel's machine code: how much it issues, and how often it waits for memory."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.MULTILINE
)
_TARGET = re.compile(r"0x([0-9a-f]+)")
_KINDS = {
    "tensor cores": r"[HIQ]GMMA|HMMA|IMMA|WARPGROUP|FENCE",
    "copies": r"LDGSTS|LDGDEPBAR|DEPBAR|LDG|STG|UTMA",
    "shared memory": r"LDS|STS|LDSM|STSM",
    "16 bits to 32 and back": r"PRMT|IMAD\.U32|SHF\.L\.U32|F2FP",
    "arithmetic": r"FFMA|FADD|FMUL|FMNMX|FSEL|FSETP|HFMA2|HADD2|HMUL2|HMNMX2|I2F|F2I",
    "moves": r"MOV|UMOV|IMAD\.MOV|CS2R|R2UR|S2R|R2P",
}
"""What instructions do, by the beginning of their names; the others are addresses, masks, branches and barriers."""
_OTHER = "addresses, masks, branches"
KINDS = (*_KINDS, _OTHER)


@dataclass(frozen=True)
class Instructions:
    """Counts of one kernel."""

    once: int
    """Instructions outside of the longest innermost loop."""
    loop: int
    """Instructions of that loop, 0 if there is none."""
    waits: int
    """Groups of loads outside of it: what is loaded between two stores or barriers is on its way together."""
    loop_loads: bool
    """Whether the loop loads to registers, so that every round waits for memory."""
    loop_copies: bool
    """Whether the loop copies to shared memory in the background, rounds ahead."""


def instructions(listing: str) -> Instructions:
    """The counts of nvdisasm's listing of one kernel."""
    found = _found(listing)
    first, last = _longest_inner_loop(found)
    inside = [name.split(".")[0] for at, name, _ in found if first <= at <= last]
    outside = [name.split(".")[0] for at, name, _ in found if not first <= at <= last]
    return Instructions(
        len(outside), len(inside), _groups_of_loads(outside), "LDG" in inside, "LDGSTS" in inside
    )


def kinds_of_loop(listing: str) -> dict[str, int]:
    """How many instructions of the longest innermost loop do what, for each of ``KINDS``."""
    found = _found(listing)
    first, last = _longest_inner_loop(found)
    counts = Counter(_kind(name) for at, name, _ in found if first <= at <= last)
    return {kind: counts[kind] for kind in KINDS}


def _kind(name: str) -> str:
    return next((kind for kind, names in _KINDS.items() if re.match(rf"(?:{names})(?:\.|$)", name)), _OTHER)


def _found(listing: str) -> list[tuple[int, str, str]]:
    """Address, name with modifiers, and operands of each instruction."""
    return [(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(listing) if name != "NOP"]


def _longest_inner_loop(found: list[tuple[int, str, str]]) -> tuple[int, int]:
    """First and last address, or an empty range if nothing jumps backwards."""
    loops = [
        (int(target[1], 16), at)
        for at, name, rest in found
        if name.startswith("BRA") and (target := _TARGET.search(rest)) and int(target[1], 16) < at
    ]
    inner = [
        (first, last)
        for first, last in loops
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in loops)
    ]
    return max(inner, key=lambda loop: sum(loop[0] <= at <= loop[1] for at, _, _ in found), default=(0, -1))


def _groups_of_loads(names: list[str]) -> int:
    groups, loading = 0, False
    for name in names:
        if name in {"LDG", "LDGSTS"}:
            groups += not loading
            loading = True
        elif name in {"STG", "BAR"}:
            loading = False
    return groups

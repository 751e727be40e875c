"""Machine code read: instructions counted, and which kernel they belong to."""

from __future__ import annotations

import struct

import pytest

from benchmarks.compiled_kernels.sass import Machine, disassemble, machine_code, read_listing

LISTING = """
	.headerflags	@"EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R9+0x400], desc[UR4][R2.64], P1 ;
        /*0020*/             @!UP1 LDGSTS.E.LTC128B [R9+0x400], desc[UR4][R2.64] ;
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0040*/                   STL.64 [R1+0x8], R4 ;
        /*0050*/               @P3 LDL R4, [R1+0x8] ;
        /*0060*/                   IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4 ;
        /*0070*/                   BRA 0x70;
"""


def test_instructions_are_counted_for_each_kernel() -> None:
    first, second = read_listing(LISTING, [64, 64])
    assert first == Machine(spills=0, tensor_core={"HGMMA": 1}, async_copies=1)
    assert second == Machine(spills=2, tensor_core={"IMMA": 1}, async_copies=0, spilled_bytes=8)


def test_a_listing_that_was_not_understood_is_no_good_kernel() -> None:
    with pytest.raises(ValueError, match="nvdisasm lists 8 instructions of 9"):
        read_listing(LISTING, [144])


def test_nothing_to_disassemble() -> None:
    assert disassemble([], 90) == []


def elf(sections: dict[bytes, bytes]) -> bytes:
    """A file of 64 bits with these sections, then their names."""
    names = b"\0" + b"".join(name + b"\0" for name in sections) + b".shstrtab\0"
    body, headers, name_at = b"", [bytes(64)], 1
    for name, content in [*sections.items(), (b".shstrtab", names)]:
        headers.append(struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, 64 + len(body), len(content), 0, 0, 0, 0))
        body += content
        name_at += len(name) + 1
    header = bytearray(64)
    struct.pack_into("<Q", header, 0x28, 64 + len(body))
    struct.pack_into("<HHH", header, 0x3A, 64, len(headers), len(headers) - 1)
    return bytes(header) + body + b"".join(headers)


def test_machine_code_is_the_text_of_a_cubin() -> None:
    cubin = elf({b".nv.info": b"x" * 24, b".text.conv_kernel": b"a" * 32, b".nv.constant0": b"y" * 8})
    assert machine_code(cubin) == b"a" * 32

"""The model adds up what it is given: bytes, products, instructions and waits, by rates with a source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import model
from benchmarks.gpu.devices import DEVICES, Device, Rate, measured
from benchmarks.gpu.launches import flops_of, network_launches
from benchmarks.gpu.machine_code import KINDS, Instructions, instructions, kinds_of_loop
from benchmarks.gpu.model import Compiled, Predicted, trips
from benchmarks.gpu.networks import FULL
from fused_kernels.launch import Launch

H100 = DEVICES["h100"]
LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0030*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64] ;
        /*0050*/               @P0 BRA 0x40 ;
        /*0060*/                   HGMMA.64x128x16.F32 R24, R4, gdesc[UR4], R24 ;
        /*0070*/              @!P1 BRA 0x30 ;
        /*0080*/                   STG.E [R2], R24 ;
        /*0090*/                   BAR.SYNC 0x0 ;
        /*00a0*/                   LDG.E R4, [R2] ;
        /*00b0*/                   EXIT ;
        /*00c0*/                   BRA 0xc0;
        /*00d0*/                   NOP ;
"""
ONCE = Instructions(once=1_000, loop=10, waits=2, loop_loads=False, loop_copies=False)


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    return network_launches(FULL, 4, torch.bfloat16, training=True, part="layer2.1")


def device(**rates: float) -> Device:
    """An H100 on which nothing takes time but what is given."""
    fast = dict.fromkeys(("clock", "memory", "cache", "tensor", "int8"), 1e30) | {
        "latency": 0.0,
        "gap": 0.0,
    }
    made = {name: Rate(value, "", "this test") for name, value in (fast | rates).items()}
    return replace(H100, **made)  # type: ignore[arg-type]


def predicted(
    launches: list[Launch],
    monkeypatch: pytest.MonkeyPatch,
    registers: int = 128,
    code: Instructions = ONCE,
    **rates: float,
) -> list[Predicted]:
    made = Compiled(registers, 0, 256, code)
    monkeypatch.setattr(model, "_compiled", lambda variants, device, jobs: ((v, made) for v in variants))
    return model.predict(launches, device(**rates), 1)


def test_instructions_are_those_of_the_innermost_loop_and_the_others() -> None:
    assert instructions(LISTING) == Instructions(once=11, loop=2, waits=2, loop_loads=False, loop_copies=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("LDS.128", "shared memory"),
        ("IMAD.U32", "16 bits to 32 and back"),
        ("F2FP.RELU.BF16.F32.PACK_AB", "16 bits to 32 and back"),
        ("IMAD.MOV.U32", "moves"),
        ("IMAD.WIDE.U32", KINDS[-1]),
    ],
)
def test_instructions_of_the_loop_are_told_apart_by_what_they_do(name: str, kind: str) -> None:
    expected = dict.fromkeys(KINDS, 0) | {"copies": 1, KINDS[-1]: 1}  # and the branch
    assert kinds_of_loop(LISTING) == expected
    changed = LISTING.replace("LDGSTS.E.BYPASS.128", name)
    expected |= {"copies": 0}
    assert kinds_of_loop(changed) == expected | {kind: expected[kind] + 1}


def test_trips_are_the_launchs_own(launches: list[Launch]) -> None:
    found = {
        (launch.kernel, launch.arguments.get("TAPS_H")): trips(launch)
        for launch in launches
        if launch.kernel in {"conv.conv_kernel", "passes.join_kernel"}
    }
    assert found["conv.conv_kernel", 3] == 9 * 2  # 128 channels in steps of 64
    assert found["passes.join_kernel", None] == 1


@pytest.mark.parametrize(("registers", "threads", "shared", "expected"), [
    (170, 256, 0, 1), (128, 256, 0, 2), (32, 128, 100_000, 2), (32, 256, 0, 8),
])  # fmt: skip
def test_programs_on_a_processor(registers: int, threads: int, shared: int, expected: int) -> None:
    assert Compiled(registers, shared, threads, ONCE).resident(H100) == expected


def test_the_longest_kind_of_work_decides(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = launches
    programs = first.grid[0]
    busiest = -(-programs // 132) * 132 / programs
    by_tensor = predicted([first], monkeypatch, tensor=1e12)
    assert by_tensor[0].ms == pytest.approx(1e-9 * busiest * flops_of(first))
    by_issue = predicted([first], monkeypatch, clock=1e9)
    issued = programs * 8 * (1_000 + 10 * trips(first))
    assert by_issue[0].ms == pytest.approx(1e3 * busiest * issued / (132 * 4 * 1e9))
    by_cache = predicted([first], monkeypatch, cache=1e12)
    a = first.arguments
    steps = programs * trips(first) * (a["BLOCK_M"] + a["BLOCK_N"]) * a["BLOCK_K"]
    assert by_cache[0].ms == pytest.approx(1e3 * 2 * steps / 1e12)
    assert [one.bound for one in (*by_tensor, *by_issue, *by_cache)] == ["tensor", "issue", "cache"]


def test_programs_that_share_a_processor_wait_together(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(launches[0], grid=(132 * 4,))
    together = predicted([first], monkeypatch, latency=1e-6)[0]
    assert (together.resident, together.alone, together.waits) == (
        2,
        pytest.approx(2e-3),
        pytest.approx(4e-3),
    )
    alone = predicted([first], monkeypatch, registers=170, latency=1e-6)[0]
    assert (alone.resident, alone.alone, alone.waits) == (1, pytest.approx(8e-3), 0.0)
    slow = predicted([first], monkeypatch, registers=170, clock=1e9)[0]
    assert slow.alone == pytest.approx(1e3 * 4 * 1_000 * 8 / 4 / 1e9), (
        "four waves, eight warps, four schedulers"
    )
    rounds = trips(first)
    loads = predicted([first], monkeypatch, code=replace(ONCE, loop_loads=True, waits=0), latency=1e-6)[0]
    assert loads.ms == pytest.approx(1e-3 * 2 * rounds)
    copies = predicted([first], monkeypatch, code=replace(ONCE, loop_copies=True, waits=0), latency=1e-6)[0]
    assert copies.ms == pytest.approx(1e-3 * 2 * -(-rounds // (first.tile.stages - 1)))


def test_every_launch_costs_the_gap_before_it(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = predicted(launches, monkeypatch, gap=1e-6)
    assert sum(one.ms for one in found) == pytest.approx(1e-3 * len(launches))
    assert all(model.floor(one, H100) > 0 for one in found)


def test_the_table_has_sums_and_every_rate_its_source(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = predicted(launches, monkeypatch, gap=1e-6)
    text = model.as_text(found, H100)
    assert text.startswith("a model, not a measurement")
    assert f"0 of {len(launches)} launches fit a processor once" in text
    assert model.table(found, H100)[-1][:3] == ["all", str(len(launches)), f"{1e-3 * len(launches):.3f}"]
    for name, rate in H100.rates.items():
        assert len(rate.source) > 20, name
        assert rate.source in text


def test_what_a_visit_measured_takes_the_place_of_what_is_published(tmp_path: Path) -> None:
    ceilings: dict[str, Any] = {
        "copy_gb_per_s": 3_000.0,
        "bf16_tflop_per_s": 700.0,
        "int8_top_per_s": 1_400.0,
    }
    body = {
        "environment": {"date": "2026-11-28T10:00:00"},
        "ceilings": ceilings | {"graph_launch_gap_us": None},
    }
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps(body))
    found = measured(H100, path)
    assert (found.memory.value, found.tensor.value, found.int8.value) == (3e12, 7e14, 1.4e15)
    assert found.gap == H100.gap
    assert found.memory.source == "measured on 2026-11-28, kernels.json"
    body["ceilings"]["graph_launch_gap_us"] = 1.0  # type: ignore[index]
    path.write_text(json.dumps(body))
    assert measured(H100, path).gap.value == 1e-6
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"kernels\.json is not a report with measured ceilings"):
        measured(H100, path)

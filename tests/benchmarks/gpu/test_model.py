"""The model adds up what it is given: bytes, products and instructions, by rates."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import model
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.launches import flops_of, network_launches
from benchmarks.gpu.model import DEVICES, Compiled, Device, Predicted, instructions, trips
from benchmarks.gpu.networks import FULL
from fused_kernels.launch import Launch

LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   MOV R2, RZ ;
        /*0020*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0030*/                   IADD3 R3, R3, 0x1, RZ ;
        /*0040*/               @P0 BRA 0x30 ;
        /*0050*/                   HGMMA.64x128x16.F32 R24, R4, gdesc[UR4], R24 ;
        /*0060*/              @!P1 BRA 0x20 ;
        /*0070*/                   EXIT ;
        /*0080*/                   BRA 0x80;
        /*0090*/                   NOP ;
"""


@pytest.fixture(scope="module")
def launches() -> list[Launch]:
    return network_launches(FULL, 4, torch.bfloat16, training=True, part="layer2.1")


def test_instructions_are_those_of_the_innermost_loop_and_the_others() -> None:
    assert instructions(LISTING) == (7, 2)


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
    assert Compiled(registers, shared, threads, 0, 0).resident(DEVICES["h100"]) == expected


def test_the_largest_of_three_decides(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    made = Compiled(128, 0, 256, 1_000, 10)
    monkeypatch.setattr(model, "_compiled", lambda variants, device, jobs: ((v, made) for v in variants))

    def total(bandwidth: float, flops: float, clock: float) -> list[Predicted]:
        return model.predict(launches, Device(90, 132, clock, Ceilings(bandwidth, flops, flops, None, ())), 1)

    by_tensor = total(1e30, 1e12, 1e30)
    assert sum(one.ms for one in by_tensor) == pytest.approx(1e-9 * sum(map(flops_of, launches)))
    assert sum(one.floor for one in total(1e30, 1e30, 1e9)) < 1e-9
    by_issue = total(1e30, 1e30, 1e9)
    first = by_issue[0]
    warps = first.launch.grid[0] * 8
    assert first.ms == pytest.approx(1e3 * warps * (1_000 + 10 * trips(first.launch)) / (132 * 4 * 1e9))
    text = model.as_text(by_issue, DEVICES["h100"])
    assert text.startswith("a model, not a measurement")
    assert f"0 of {len(launches)} launches fit a processor once" in text

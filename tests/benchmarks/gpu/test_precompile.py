"""Kernels asked for before they are launched: each once, in order, and the reasons of those that fail."""

from __future__ import annotations

import time
from concurrent.futures import Future

import pytest
import torch

from benchmarks.gpu import precompile
from benchmarks.gpu.precompile import NICENESS, Precompiler
from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.variant import Variant, variant_of
from fused_kernels.launch import Launch, implementation, recording
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import statistics


class Pool:
    """A compile pool that does nothing by itself."""

    def __init__(self, jobs: int | None, *, niceness: int) -> None:
        assert niceness == NICENESS
        self.asked: list[tuple[Variant, int, Future[Code]]] = []

    def submit(self, variant: Variant, capability: int) -> Future[Code]:
        self.asked.append((variant, capability, Future()))
        return self.asked[-1][2]


@pytest.fixture
def precompiler(monkeypatch: pytest.MonkeyPatch) -> Precompiler:
    monkeypatch.setattr(precompile, "CompilePool", Pool)
    return Precompiler(90)


def launches(*tiles: int) -> list[Launch]:
    with implementation("kernels"), recording() as found:
        for count in tiles:
            statistics.sums(Partials(torch.empty(2, count, 24, device="meta"), 32, 32 * count))
    return found


def test_a_variant_is_compiled_once(precompiler: Precompiler) -> None:
    first, again, other = launches(130, 130, 128)
    assert precompiler.add([first, again]) == [variant_of(first)]
    assert precompiler.add([again, other]) == [variant_of(first), variant_of(other)]
    asked = precompiler.pool.asked  # type: ignore[attr-defined]
    assert [(variant, capability) for variant, capability, _ in asked] == [
        (variant_of(first), 90),
        (variant_of(other), 90),
    ]


def test_missing_ones_are_counted_and_failures_named(precompiler: Precompiler) -> None:
    wanted = precompiler.add(launches(130, 128))
    (_, _, good), (_, _, bad) = precompiler.pool.asked  # type: ignore[attr-defined]
    good.set_result(Code(b"code"))
    assert precompiler.wait(wanted, time.monotonic()) == 1
    bad.set_result(Code(error="OutOfResources: too much"))
    assert precompiler.wait(wanted, time.monotonic()) == 0
    (failure,) = precompiler.failures()
    assert failure.startswith("statistics.sums_kernel ")
    assert failure.endswith("'num_stages': 3}: OutOfResources: too much")


def test_what_is_cancelled_may_be_asked_for_again(precompiler: Precompiler) -> None:
    wanted = precompiler.add(launches(130))
    precompiler.cancel()
    assert precompiler.known == {}
    assert precompiler.wait(wanted, time.monotonic()) == 0
    assert precompiler.add(launches(130)) == wanted


def test_nothing_is_compiled_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precompile, "CompilePool", Pool)
    assert Precompiler(None).add(launches(130)) == []

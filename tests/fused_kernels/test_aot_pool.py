"""Compilations in processes: chunks, and a compiler that crashes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import pytest

from fused_kernels.aot import pool
from fused_kernels.aot.compiler import Compiled
from fused_kernels.aot.pool import CHUNK, compile_in_processes
from fused_kernels.aot.targets import TARGETS, Target
from fused_kernels.aot.variant import Variant

HOPPER, AMPERE = TARGETS["sm_90"], TARGETS["sm_80"]


def variant(name: str) -> Variant:
    """One without parameters."""
    return Variant(name, (), (), (), 4, 3, True)


class PoolThatCrashes:
    """Stands for a ``ProcessPoolExecutor`` whose process dies of every variant called crash."""

    started = 0

    def __init__(self, *_: object, **__: object) -> None:
        PoolThatCrashes.started += 1

    def submit(self, _: Callable[..., Any], variants: Sequence[Variant], target: Target) -> Future[Any]:
        future: Future[Any] = Future()
        if any(v.kernel == "crash" for v in variants):
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result([Compiled(v, target.name, registers=40) for v in variants])
        return future

    def shutdown(self) -> None:
        pass


def test_a_crash_is_the_result_of_one_variant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ProcessPoolExecutor", PoolThatCrashes)
    PoolThatCrashes.started = 0
    names = [*(f"kernel {index}" for index in range(30)), "crash", "last"]
    results = list(compile_in_processes([(variant(name), HOPPER) for name in names], jobs=1))
    assert [result.variant.kernel for result in results] == names
    assert [result.error for result in results if result.error] == ["the compiler crashed"]
    assert (
        PoolThatCrashes.started == 3
    )  # at first, after the chunk that crashed, after the variant that did it


def test_nothing_to_compile() -> None:
    assert list(compile_in_processes([], jobs=4)) == []


def test_a_chunk_has_one_target_and_every_process_gets_several() -> None:
    work = [(variant(str(index)), target) for index in range(20) for target in (HOPPER, AMPERE)]
    chunks = pool._chunks(work, jobs=2)
    assert [target for _, target in chunks] == [HOPPER] * 4 + [AMPERE] * 4
    assert [len(variants) for variants, _ in chunks] == [5] * 8
    assert max(len(variants) for variants, _ in pool._chunks(work * 50, jobs=2)) == CHUNK


def test_variants_travel_between_processes_unchanged() -> None:
    import pickle

    sent = replace(variant("conv.conv_kernel"), constants=(((1, 2), None), ((3,), 1)))
    assert pickle.loads(pickle.dumps(sent)) == sent

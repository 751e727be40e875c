"""Worker processes that compile, crash and are stopped; a stand-in takes the compiler's place."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest

from fused_kernels.compiling import pool as pools
from fused_kernels.compiling.compiler import Code, parameters_of
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant

WORKER = """
import os, pickle, sys, time

class Named(pickle.Unpickler):  # a variant's own class would import torch
    def find_class(self, module, name):
        return type(name, (), {"__setstate__": lambda self, state: self.__dict__.update(state)})

while True:
    try:
        variant, capability = Named(sys.stdin.buffer).load()
    except EOFError:
        break
    kernel = variant.kernel
    if kernel == "crash":
        os.kill(os.getpid(), 9)
    if kernel == "complain":
        sys.exit("no such thing")
    if kernel == "garbage":
        os.write(1, b"garbage")
        os.close(1)
        time.sleep(600)  # until it is killed: a second write would fail and say so
    if kernel == "endless":
        time.sleep(600)
    said = f"{kernel} {capability} {os.getpid()} {sys.argv[1]} {os.environ['TRITON_INTERPRET']}"
    pickle.dump((b"code", said), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pool starts ``WORKER``."""
    (tmp_path / "stand_in_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pools, "_WORKER", "stand_in_worker")


def variant(name: str) -> Variant:
    """A kernel without parameters."""
    return Variant(name, (), (), (), (("num_warps", 4), ("num_stages", 3)), True)


def entries(pool: CompilePool, *names: str) -> list[list[str]]:
    """The words of each answer, all asked for before the first is awaited."""
    futures = [pool.submit(variant(name), 90) for name in names]
    return [future.result().entry.split() for future in futures]


@pytest.mark.usefixtures("stand_in")
def test_a_few_processes_answer_every_variant() -> None:
    with CompilePool(2) as pool:
        futures = [pool.submit(variant(str(number)), 90) for number in range(9)]
        found = [future.result().entry.split() for future in futures]
    assert [words[:2] for words in found] == [[str(number), "90"] for number in range(9)]
    assert len({words[2] for words in found}) <= 2
    assert {words[4] for words in found} == {"0"}  # this process interprets kernels, those do not


@pytest.mark.usefixtures("stand_in")
def test_a_pool_may_have_a_lower_priority() -> None:
    with CompilePool(1, niceness=3) as pool:
        words = pool.submit(variant("any"), 90).result().entry.split()
    assert words[3] == "3"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("name", "reason"),
    [("crash", "no reason given"), ("garbage", "no reason given"), ("complain", "no such thing")],
)
def test_a_crash_is_the_result_of_one_variant_alone(name: str, reason: str) -> None:
    with CompilePool(1) as pool:
        futures = [pool.submit(variant(each), 90) for each in ("before", name, "after")]
        before, crashed, after = (future.result() for future in futures)
    assert crashed == Code(error=f"the compiler's process ended: {reason}")
    assert (before.error, after.error) == ("", "")
    assert before.entry.split()[2] != after.entry.split()[2]


@pytest.mark.usefixtures("stand_in")
def test_a_pool_that_is_stopped_ends_what_it_is_doing() -> None:
    pool = CompilePool(1)
    running, waiting = pool.submit(variant("endless"), 90), pool.submit(variant("never"), 90)
    Timer(1.0, pool.stop).start()
    assert running.result().error
    assert waiting.cancelled()
    pool.stop()


def test_variants_travel_between_processes_unchanged() -> None:
    sent = replace(variant("conv.conv_kernel"), constants=(((1, 2), None), ((3,), 1)))
    assert pickle.loads(pickle.dumps(sent)) == sent


def test_parameters_are_those_of_the_entry_function() -> None:
    ptx = """
.func helper(.param .b32 a) { }
.visible .entry pool_kernel(
	.param .u64 .ptr .global .align 1 pool_kernel_param_0,
	.param .u32 pool_kernel_param_1
)
.reqntid 128
{ ld.param.u32 %r1, [pool_kernel_param_1]; }
"""
    assert parameters_of(ptx) == ("u64", "u32")
    assert parameters_of(".version 8.0") == ()


def test_nothing_is_imported_from_the_working_directory(
    stand_in: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for name in ("pickle", "runpy", "queue", "tempfile"):
        (hostile / f"{name}.py").write_text("import os; os._exit(3)")
    monkeypatch.chdir(hostile)
    monkeypatch.syspath_prepend(str(hostile))  # as python -m does
    with CompilePool(1) as pool:
        assert entries(pool, "fine")[0][0] == "fine"

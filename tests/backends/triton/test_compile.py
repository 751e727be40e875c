"""Kernels are compiled in processes of their own; what goes wrong there is one sentence here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fused_kernels.aot.targets import TARGETS, Target
from fused_kernels.aot.variant import Variant, variant_of
from fused_kernels.launch import implementation, recording
from fused_kernels.ops.shortcut import widen
from rescompile.backends.base import Progress
from rescompile.backends.triton import compile as compiling
from rescompile.backends.triton.compile import compile_variants
from rescompile.backends.triton.worker import Code, parameters_of
from rescompile.errors import BackendError
from tests.backends.triton.planned import make_plan, stand_ins
from tests.fused_kernels.conftest import activation

HOPPER = TARGETS["sm_90"]


@pytest.fixture(scope="module")
def variant() -> Variant:
    """The smallest kernel that there is."""
    with implementation("kernels"), recording() as launches:
        widen(activation(1, 16, 4, 4).to("meta"), stride=2, before=8, after=8)
    return variant_of(launches[0])


@pytest.mark.slow
def test_machine_code_comes_back_in_order_with_progress(variant: Variant) -> None:
    seen: list[tuple[int, int]] = []
    wider = replace(variant, warps=8)
    codes = compile_variants([variant, wider], HOPPER, lambda done, total: seen.append((done, total)))
    assert [code.threads for code in codes] == [128, 256]
    assert all(code.cubin[:4] == b"\x7fELF" and code.entry == "widen_kernel" for code in codes)
    # two addresses, seven numbers of which STRIDE and BEFORE are compiled in, and Triton's two workspaces
    passed = sum(kind != "constexpr" for _, kind in variant.types)
    assert {code.parameters for code in codes} == {("u64",) * 2 + ("u32",) * (passed - 2) + ("u64",) * 2}
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_named(variant: Variant) -> None:
    wrong = replace(variant, warps=3)
    with pytest.raises(BackendError, match=r"Triton cannot compile shortcut\.widen_kernel for sm_90: \w+"):
        compile_variants([wrong], HOPPER)


def worker(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in place of the worker."""
    (folder / "stand_in_worker.py").write_text(READ + body)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(compiling, "_WORKER", "stand_in_worker")


READ = """
import os, pickle, sys

class Anything:
    def __setstate__(self, state): pass

class Reader(pickle.Unpickler):  # of positions; the variants' own class would import torch
    def find_class(self, module, name): return Anything

work = lambda: Reader(sys.stdin.buffer).load()
"""
ANSWER = """
for position, variant in work():
    pickle.dump((position, (b"code", "entry", 128, {shared}, ("u64",), "")), sys.stdout.buffer)
"""


def test_every_variant_is_answered_once(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, ANSWER.format(shared=100), monkeypatch)
    monkeypatch.setattr(compiling, "default_jobs", lambda: 3)
    codes = compile_variants([variant] * 5, HOPPER)
    assert [(code.cubin, code.shared_bytes) for code in codes] == [(b"code", 100)] * 5


def test_a_kernel_too_large_for_the_target_is_refused(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, ANSWER.format(shared=200_000), monkeypatch)
    with pytest.raises(BackendError, match="needs 200,000 bytes of shared memory, sm_89 has 101,376"):
        compile_variants([variant], TARGETS["sm_89"])
    assert compile_variants([variant], HOPPER)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('no such thing')", "ended at shortcut.widen_kernel for sm_90: no such thing"),
        ("work(); os.kill(os.getpid(), 9)", "for sm_90: no reason given"),
        ("work(); os.write(1, b'garbage')", "for sm_90: no reason given"),
    ],
)
def test_a_worker_that_ends_early_is_an_error(
    body: str, words: str, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, body, monkeypatch)
    with pytest.raises(BackendError, match=words):
        compile_variants([variant], HOPPER)


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


def test_arguments_that_the_machine_code_does_not_take_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(variants: list[Variant], target: Target, progress: Progress | None = None) -> list[Code]:
        return [code._replace(parameters=code.parameters[::-1]) for code in stand_ins(variants, target)]

    monkeypatch.setattr("tests.backends.triton.planned.stand_ins", other)
    with pytest.raises(
        BackendError, match=r"is passed \*fp32, .* its machine code takes u64.*install Triton 3\.6"
    ):
        make_plan(tmp_path, "cifar", "int8")

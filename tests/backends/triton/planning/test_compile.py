"""Kernels are compiled in processes of their own; what goes wrong there is one sentence here."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant, variant_of
from fused_kernels.gpus import TARGETS, Target
from fused_kernels.launch import implementation, recording
from fused_kernels.ops.shortcut import widen
from rescompile.backends.base import Progress
from rescompile.backends.triton.planning import compile as compiling
from rescompile.backends.triton.planning.compile import compile_variants
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


def with_warps(variant: Variant, warps: int) -> Variant:
    return replace(variant, options=tuple({**dict(variant.options), "num_warps": warps}.items()))


@pytest.mark.slow
def test_machine_code_comes_back_in_order_with_progress(variant: Variant) -> None:
    seen: list[tuple[int, int]] = []
    wider = with_warps(variant, 8)
    codes = compile_variants([variant, wider], HOPPER, lambda done, total: seen.append((done, total)))
    assert [code.threads for code in codes] == [128, 256]
    assert all(code.cubin[:4] == b"\x7fELF" and code.entry == "widen_kernel" for code in codes)
    # two addresses, seven numbers of which STRIDE and BEFORE are compiled in, and Triton's two workspaces
    passed = sum(kind != "constexpr" for _, kind in variant.types)
    assert {code.parameters for code in codes} == {("u64",) * 2 + ("u32",) * (passed - 2) + ("u64",) * 2}
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_machine_code_is_the_same_from_every_compilation(
    variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("first", "second"):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / name))
        made += [code._replace(seconds=0.0) for code in compile_variants([variant], HOPPER)]
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_kernel_that_does_not_compile_is_named(variant: Variant) -> None:
    wrong = with_warps(variant, 3)
    with pytest.raises(BackendError, match=r"Triton cannot compile shortcut\.widen_kernel for sm_90: \w+"):
        compile_variants([wrong], HOPPER)


class Pool(CompilePool):
    """A pool whose every answer is ``code``; nothing is started."""

    code = Code(b"code", "entry", 128, 200_000)

    def submit(self, variant: Variant, capability: int) -> Future[Code]:
        future: Future[Code] = Future()
        future.set_result(self.code)
        return future


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[Pool]:
    """``Pool`` instead of the real one."""
    monkeypatch.setattr(compiling, "CompilePool", Pool)
    return Pool


@pytest.mark.usefixtures("pool")
def test_a_kernel_too_large_for_the_target_is_refused(variant: Variant) -> None:
    with pytest.raises(BackendError, match="needs 200,000 bytes of shared memory, sm_89 has 101,376"):
        compile_variants([variant], TARGETS["sm_89"])
    assert compile_variants([variant], HOPPER) == [Pool.code]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            Code(error="the compiler's process ended: killed"),
            "for sm_90: the compiler's process ended: killed",
        ),
        (
            Code(b"code", workspace_bytes=64),
            "it asks for a workspace of 64 bytes, which a plan does not give",
        ),
    ],
)
def test_code_that_no_plan_can_use_is_an_error(
    code: Code, words: str, variant: Variant, pool: type[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "code", code)
    with pytest.raises(BackendError, match=f"Triton cannot compile shortcut.widen_kernel .*{words}"):
        compile_variants([variant], HOPPER)


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

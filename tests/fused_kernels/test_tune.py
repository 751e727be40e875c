"""The tuner's search on a CPU: the interpreter computes, a made-up clock times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fused_kernels.candidates import candidates
from fused_kernels.choice import choose, default_tile
from fused_kernels.errors import TuningError, Unsupported
from fused_kernels.gpus import HOPPER
from fused_kernels.launch import Out, launch
from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.table import REFERENCE, read_table, write_table
from fused_kernels.tiles import Tile
from fused_kernels.tune.call import Call, call_of
from fused_kernels.tune.command import by_weight, describe, main, tune
from fused_kernels.tune.network import problems_of
from fused_kernels.tune.search import Outcome, launches_of, search
from fused_kernels.tune.verify import Verifier, poisoned, relative_error

CPU = torch.device("cpu")
SMALL = Problem("fprop", torch.float16, 2, 5, 5, 8, 24, Conv(3, 3, 1, 1), "bn_relu", "moments")
"""Three candidates, each in a flat form too."""
SPOILT = candidates(SMALL)[1]

# Runs where the interpreter is off, on a driver of a GPU that is not there: after precompiling, launches go all the way
# to Triton's own launcher, which must find everything in the cache.
COMPILED_ONCE = """
from functools import partial
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import KernelInterface
from fused_kernels import launch
from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.tune.search import launches_of, precompile

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

SHARED = 100_000  # few and small tiles
conv = Conv(1, 1)
problems = [
    Problem("fprop", torch.bfloat16, 1, 7, 7, 64, 32, conv, "identity", "bias_relu"),
    Problem("fprop", torch.int8, 1, 7, 7, 64, 32, conv, "identity", "requantize"),
]
count = precompile(problems, 90, shared=SHARED, jobs=2)

found = []
triton.knobs.compilation.listener = lambda **told: found.append(told["cache_hit"])
driver.set_active(Driver())
KernelInterface.__getitem__ = lambda kernel, grid: partial(kernel.run, grid=grid, warmup=True)
launch.is_abstract = lambda tensor: False
launched = len(list(launches_of(problems, shared=SHARED)))
assert all(found) and 1 < len(found) == count <= launched, (found, count, launched)
"""


def clock(*milliseconds: float) -> Callable[[Sequence[Callable[[], None]]], list[float]]:
    """A timer that does not run anything; the last figure is plain PyTorch's."""
    return lambda functions: [*milliseconds[: len(functions) - 1], milliseconds[-1]]


def trusting(_: Call) -> Callable[[Tile], None]:
    """A verifier that finds nothing wrong."""
    return lambda _: None


def spoilt(change: Callable[[Tensor], object]) -> Call:
    """``SMALL``'s call, whose result ``change`` alters where ``SPOILT`` computes it."""
    call = call_of(SMALL, CPU)

    def function(**operands: Tensor) -> object:
        y, partials = call.function(**operands)
        if operands["x"].dtype == SMALL.dtype and choose(SMALL, CPU) == SPOILT:
            change(y)
        return y, partials

    return replace(call, function=function)


def test_the_fastest_right_tile_wins() -> None:
    tiles = candidates(SMALL)
    outcome = search(SMALL, call_of(SMALL, CPU), lambda _: None, clock(3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0))
    assert outcome.best == tiles[1]
    assert outcome.milliseconds[REFERENCE] == 7.0
    assert not outcome.dropped


def test_plain_pytorch_wins_where_it_is_faster() -> None:
    outcome = search(SMALL, call_of(SMALL, CPU), lambda _: None, clock(3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 0.5))
    assert outcome.best == REFERENCE


def one_channel(y: Tensor) -> object:
    return y[:, 3].mul_(1.5)


def one_element(y: Tensor) -> object:
    return y[1, 7, 2, 2].add_(1.0)


def one_nan(y: Tensor) -> object:
    return y[0, 0, 0, 0].fill_(float("nan"))


@pytest.mark.parametrize("change", [one_channel, one_element, one_nan])
def test_a_wrong_tile_is_dropped_however_fast(change: Callable[[Tensor], object]) -> None:
    call = spoilt(change)
    outcome = search(SMALL, call, Verifier(call), clock(*[2.0] * 6, 9.0))
    assert set(outcome.dropped) == {SPOILT}
    assert "result 0 is off by" in outcome.dropped[SPOILT]
    assert SPOILT not in outcome.milliseconds
    assert "dropped" in describe(outcome)


def test_a_tile_that_does_not_run_is_dropped() -> None:
    def check(tile: Tile) -> None:
        if tile == SPOILT:
            raise RuntimeError("out of resource: shared memory\nRequired: 300000")

    outcome = search(SMALL, call_of(SMALL, CPU), check, clock(*[2.0] * 6, 9.0))
    assert outcome.dropped == {SPOILT: "does not run: RuntimeError: out of resource: shared memory"}


def test_outputs_are_poisoned_before_the_first_launch_that_writes_them() -> None:
    out, whole = torch.zeros(4), torch.zeros(4, dtype=torch.int8)
    with poisoned():
        launch("passes.join_kernel", (0,), Tile(16, 16), z_ptr=Out(out), other_ptr=Out(whole))
        assert out.isnan().all()
        assert (whole == -128).all()
        out.fill_(1.0)
        launch("passes.join_kernel", (0,), Tile(16, 16), z_ptr=Out(out))  # a second part of it
    assert (out == 1.0).all()


def test_errors_are_relative_in_both_norms() -> None:
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx((0.1, 0.125))
    assert relative_error(torch.tensor([0.5]), torch.tensor([0.0])) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("kind", "prologue", "epilogue", "dtype"),
    [
        ("fprop", "identity", "moments", torch.bfloat16),
        ("fprop", "bn_relu", "store", torch.float32),
        ("fprop", "identity", "bias", torch.float16),
        ("fprop", "identity", "bias_relu", torch.float16),
        ("fprop", "identity", "bias_residual_relu", torch.float16),
        ("fprop", "identity", "requantize", torch.int8),
        ("fprop", "identity", "requantize_relu", torch.int8),
        ("fprop", "identity", "requantize_residual", torch.int8),
        ("fprop", "identity", "requantize_residual_relu", torch.int8),
        ("fprop", "identity", "logits", torch.bfloat16),
        ("fprop", "identity", "logits", torch.int8),
        ("dgrad", "identity", "drelu", torch.float32),
        ("dgrad", "identity", "block_gradient", torch.float32),
        ("dgrad", "identity", "shortcut", torch.float16),
        ("dgrad", "identity", "store", torch.float16),
        ("wgrad", "bn_relu", "store", torch.float32),
        ("wgrad", "identity", "store", torch.bfloat16),
        ("wgrad", "bn_relu", "dy", torch.float16),
    ],
)
def test_every_operation_passes_its_own_check(
    kind: str, prologue: str, epilogue: str, dtype: torch.dtype
) -> None:
    problem = Problem(kind, dtype, 2, 5, 5, 24, 24, Conv(1, 1), prologue, epilogue)  # type: ignore[arg-type]
    assert Verifier(call_of(problem, CPU))(default_tile(problem)) is None


@pytest.mark.parametrize("epilogue", ["stem_moments", "stem_store", "stem_pool", "stem_bias_relu"])
def test_every_stem_passes_its_own_check(epilogue: str) -> None:
    problem = Problem("fprop", torch.float32, 1, 8, 8, 16, 16, Conv(3, 3, 1, 1), "identity", epilogue)
    assert Verifier(call_of(problem, CPU))(default_tile(problem)) is None


def test_a_stems_weight_gradient_passes_its_own_check() -> None:
    problem = Problem("wgrad", torch.float32, 1, 6, 6, 48, 16, Conv(1, 1), "identity", "stem")
    assert Verifier(call_of(problem, CPU))(default_tile(problem)) is None


@pytest.mark.parametrize("following", [0, 32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_a_chain_passes_its_own_check(dtype: torch.dtype, following: int) -> None:
    problem = Problem("chain", dtype, 1, 5, 5, 32, 64, Conv(3, 3, 2, 1), following=following)
    assert Verifier(call_of(problem, CPU))(default_tile(problem)) is None


@pytest.mark.parametrize(
    ("elements", "step", "message"),
    [(1, 1, None), (1, 2, "by up to 2"), (11, 1, "differs in 0.11 % of its elements")],
)
def test_int8_may_differ_by_one_in_few_elements(elements: int, step: int, message: str | None) -> None:
    result = torch.zeros(10_000, dtype=torch.int8)
    verifier = Verifier(Call(lambda x: result.clone(), {"x": result}))
    result[:elements] += step
    wrong = verifier(Tile(16, 16))
    assert wrong is None if message is None else message in str(wrong)


def test_a_table_is_extended(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    kept = {"fprop elsewhere": Tile(64, 64, 64), "dgrad elsewhere": REFERENCE}
    write_table(path, "A GPU", kept)
    said: list[str] = []
    tune(
        Counter([SMALL]),
        CPU,
        path,
        device_name="A GPU",
        timer=clock(*range(2, 8), 9.0),
        verifier=trusting,
        say=said.append,
    )
    assert read_table(path) == {**kept, SMALL.key: candidates(SMALL)[0]}
    assert json.loads(path.read_text("utf-8"))["device"] == "A GPU"
    assert said[0].startswith(f"{SMALL.key}: ")


def test_what_a_table_holds_is_not_searched_again_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    write_table(path, "A GPU", {SMALL.key: REFERENCE})

    def again(*, retune: bool) -> list[Outcome]:
        return tune(
            Counter([SMALL]), CPU, path, device_name="A GPU", retune=retune, timer=clock(*range(2, 8), 9.0),
            verifier=trusting, say=lambda _: None,
        )  # fmt: skip

    assert again(retune=False) == []
    assert read_table(path) == {SMALL.key: REFERENCE}
    assert again(retune=True)[0].best == candidates(SMALL)[0]
    assert read_table(path) == {SMALL.key: candidates(SMALL)[0]}


def test_a_search_that_is_out_of_time_keeps_what_it_has(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "gpu.json"
    outcomes = tune(
        Counter([SMALL]), CPU, path, device_name="A GPU", minutes=-1.0, timer=clock(1.0), say=said.append
    )
    assert outcomes == []
    assert said == ["stopped after -1 minutes with 1 problems left"]


def test_a_broken_table_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text("{}", "utf-8")
    with pytest.raises(TuningError, match="is not a tuning table"):
        tune(Counter([SMALL]), CPU, path, device_name="A GPU", timer=clock(1.0), verifier=trusting)
    assert path.read_text("utf-8") == "{}"


@pytest.mark.parametrize(
    ("name", "training", "dtype", "count"),
    [
        ("resnet50", True, torch.bfloat16, 71),
        ("resnet50", False, torch.float16, 30),
        ("resnet50", False, torch.int8, 30),
        ("resnet18", True, torch.float16, 45),
        ("cifar-resnet20", True, torch.float32, 27),
        ("cifar-resnet20", False, torch.int8, 10),
    ],
)
def test_every_problem_of_a_network_is_posed_and_launched(
    name: str, training: bool, dtype: torch.dtype, count: int
) -> None:
    problems = problems_of(name, batch=32, dtype=dtype, training=training)
    assert len(problems) == count
    assert {problem.dtype for problem in problems} == {dtype}
    for problem in problems:
        asked = {launch.tile for launch in launches_of([problem], shared=HOPPER)}
        assert set(candidates(problem)) <= asked


@pytest.mark.slow
def test_what_was_compiled_ahead_is_not_compiled_again(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED_ONCE], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_network_asks_for_a_problem_as_often_as_it_has_it() -> None:
    problems = problems_of("resnet50", batch=256, dtype=torch.bfloat16, training=True)
    counts = {problem.key: count for problem, count in problems.items()}
    assert counts["fprop bfloat16 n256 14x14 256->256 3x3/1+1 bn_relu moments"] == 5
    assert by_weight(problems)[0].key == "fprop bfloat16 n256 224x224 32->64 7x7/2+3 identity stem_moments"


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(Unsupported, match="unknown network 'resnet5': choose one of resnet18"):
        problems_of("resnet5", batch=1, dtype=torch.float32, training=True)


def test_a_problem_of_another_version_is_refused() -> None:
    with pytest.raises(Unsupported, match="no operation poses the problem"):
        call_of(replace(SMALL, epilogue="sigmoid"), CPU)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 1, "error: tuning needs a CUDA GPU"),
        (["--dtype", "int8"], 1, "error: int8 is for inference"),
        (["--model", "vgg16"], 1, "error: unknown network 'vgg16'"),
        (["--batch", "0"], 2, "--batch 0: at least one image is needed"),
        (["--dtype", "float8"], 2, "invalid choice: 'float8'"),
    ],
)
def test_the_command_says_what_it_lacks(
    options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == code
    assert message in capsys.readouterr().err


def test_the_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fused_kernels.tune", "--help"], capture_output=True, text=True, check=True
    )
    assert "--inference" in done.stdout

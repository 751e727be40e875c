"""The GPU benchmark without a GPU: every path that does not need one, and the report that it writes."""

from __future__ import annotations

import fcntl
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_kernels
from benchmarks.gpu import correctness, phase_kernels, timing
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.context import Context, DeviceLost
from benchmarks.gpu.gpu_lock import GpuLock, hold_while_inductor_times
from benchmarks.gpu.int8_network import Int8Network
from benchmarks.gpu.launches import floor_ms, flops_of, network_launches
from benchmarks.gpu.layers import distinct_layers
from benchmarks.gpu.options import Options
from benchmarks.gpu.peers import Farm, priorities
from benchmarks.gpu.plain_resnet import FULL, TINY, flops, folded, images, plain, settle
from benchmarks.gpu.report import Report, as_text, bars_for
from benchmarks.gpu.training_cases import training_specs
from benchmarks.gpu.workloads import Setting, Workload
from fused_kernels.launch import implementation
from fused_kernels.ops import convolution
from tests.benchmarks import scripted

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_kernels.py"
CPU = torch.device("cpu")
ROUND = {"median", "min", "p10", "p90", "rounds"}


@pytest.fixture(autouse=True)
def plain_pytorch() -> Any:
    """Other tests of this process may have switched the interpreter on."""
    with implementation("reference"):
        yield


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT.parent,
        env=clean | environment,
        check=False,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    output = tmp_path_factory.mktemp("gpu") / "out.json"
    done = run_script(
        "--device", "cpu", "--tiny", "--batch", "2", "--budget-seconds", "150", "--output", str(output)
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(output.read_text("utf-8")), done.stdout


@pytest.mark.slow
def test_a_whole_run_writes_every_section(whole_run: tuple[dict[str, Any], str]) -> None:
    document, _ = whole_run
    assert document["schema"] == 1
    assert document["environment"]["device"] == "cpu"
    assert {"commit", "date", "torch", "triton", "device_name"} <= document["environment"].keys()
    assert {"copy_gb_per_s", "bf16_tflop_per_s", "int8_top_per_s"} <= document["ceilings"].keys()
    assert [phase["name"] for phase in document["phases"]] == list(gpu_kernels.SHARES)
    assert document["wrong"] == document["failed"] == []
    assert len(document["correctness"]) > 80
    assert len(document["flattened_loop"]) == 12


@pytest.mark.slow
def test_every_case_has_times_peers_and_ratios(whole_run: tuple[dict[str, Any], str]) -> None:
    document, _ = whole_run
    names = {case["name"] for case in document["cases"]}
    assert {
        "train-b2",
        "infer-b1",
        "int8-b2",
        "block layer1.1 backward b2",
        "stem wgrad bfloat16 b2",
    } <= names
    for case in document["cases"]:
        assert case["correct"] is True, case["name"]
        assert case["ratio"].keys() <= case["peers"].keys()
        if "derived" not in str(case["notes"]):
            assert case["ours_ms"].keys() == ROUND, case["name"]
            assert all(peer.keys() == ROUND for peer in case["peers"].values())


@pytest.mark.slow
def test_a_cpu_gives_no_figure_that_a_gpu_should(whole_run: tuple[dict[str, Any], str]) -> None:
    document, printed = whole_run
    assert all(bar["measured"] is None and bar["passed"] is None for bar in document["bars"])
    assert not any("torch.compile" in case["peers"] for case in document["cases"])
    reasons = {entry["name"]: entry["reason"] for entry in document["skipped"]}
    assert reasons["network: infer-b2: torch.compile"] == "there is nothing to compile for on a CPU"
    assert printed.count("not measured") == 3


@pytest.mark.slow
def test_kernels_are_checked_in_the_interpreter(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    done = run_script(
        "--device", "cpu", "--tiny", "--batch", "2", "--phases", "correctness", "--only", "*layer1.0.conv[13] *",
        "--output", str(output), TRITON_INTERPRET="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads(output.read_text("utf-8"))["correctness"]
    assert {"layer1.0.conv1 fprop float16", "layer1.0.conv3 inference int8"} <= {r["name"] for r in results}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--phases", "speed"], "--phases speed: choose from correctness, tune"),
        (["--device", "cpu", "--batch", "1"], "batch norm trains on two images or more"),
    ],
)
def test_wrong_usage_is_said_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_kernels.main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


# What survives a process that dies, hangs or takes too long


def supervised(worker: Callable[..., None], tmp_path: Path, seconds: float = 60.0) -> Report:
    report = Report({})
    options = Options("cpu", True, (2,), {}, tmp_path, tmp_path)
    farm = Farm(tmp_path, "cpu", True, [])
    end = time.monotonic() + seconds
    supervisor = gpu_kernels.Supervisor(report, options, farm, tmp_path / "out.json", end)
    supervisor.worker = worker
    supervisor.run()
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["failed"] == report.failed
    return report


def test_cases_that_kill_their_process_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    report = supervised(scripted.dying, tmp_path)
    assert report.failed == [
        {"name": "second", "reason": "its process ended with code 139"},
        {"name": "third", "reason": "illegal access"},
    ]
    assert [case["name"] for case in report.sections["cases"]] == ["first", "fourth"]
    assert report.wrong() == ["second", "third"]


def test_a_case_without_an_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "HANG", 1.0)
    assert supervised(scripted.hanging, tmp_path).failed == [
        {"name": "slow", "reason": "no answer within 1 s"}
    ]


def test_time_that_runs_out_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "GRACE", 0.0)
    report = supervised(scripted.hanging, tmp_path, seconds=3.0)
    assert report.failed == []
    assert report.skipped == [{"name": "slow", "reason": gpu_kernels.OUT_OF_TIME}]


def context_for(tmp_path: Path, sent: list[tuple[Any, ...]], **options: Any) -> Context:
    settings = Options("cpu", True, (2,), {}, tmp_path, tmp_path, **options)
    context = Context(
        settings, Setting(CPU, TINY), lambda *message: sent.append(message), GpuLock(tmp_path / "lock"), set()
    )
    context.phase, context.deadline = "kernels", time.monotonic() + 60
    return context


def test_a_case_that_raises_is_reported_and_not_raised(tmp_path: Path, capsys: Any) -> None:
    sent: list[tuple[Any, ...]] = []
    context_for(tmp_path, sent).run("broken", "cases", lambda: {"x": 1 // 0})
    kinds = [message[0] for message in sent]
    assert kinds == ["begin", "failed", "ended"]
    assert sent[1] == ("failed", "kernels: broken", "ZeroDivisionError: integer division or modulo by zero")


def test_nothing_starts_when_a_phase_has_used_its_time(tmp_path: Path) -> None:
    sent: list[tuple[Any, ...]] = []
    context = context_for(tmp_path, sent)
    context.deadline = time.monotonic() - 1
    context.run("late", "cases", lambda: pytest.fail("it ran"))
    assert sent == [("skipped", "kernels: late", "no time left for this phase")]


def test_a_lost_device_is_raised_past_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_for(tmp_path, [])

    def lost(_: Context) -> None:
        raise DeviceLost("an illegal memory access")

    monkeypatch.setattr(Context, "require_device", lost)
    with pytest.raises(DeviceLost):
        context.run("case", "cases", lambda: None)


def test_phases_hand_unused_time_on_and_take_none_from_later_ones() -> None:
    ends = gpu_kernels.deadlines(["network", "correctness"], 1000.0, 100.0)
    assert list(ends) == ["correctness", "network"]
    assert ends["network"] == pytest.approx(1097.0)
    assert ends["correctness"] == pytest.approx(1000 + 97 * 22 / 57)


def test_the_workloads_of_the_bars_are_compiled_first() -> None:
    names = [workload.name for workload in priorities([32, 128, 256], ["layer1.1"])]
    assert names[:3] == ["train-b256", "infer-b128", "block-layer1.1-b256"]
    assert sorted(names) == sorted(set(names))
    assert {"train-b32", "train-b128", "infer-b1", "infer-b32", "infer-b256"} <= set(names)


# Right and wrong


def test_a_wrong_result_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution.conv_moments

    def wrong(x: torch.Tensor, *rest: Any) -> Any:
        y, partials = right(x, *rest)
        if x.dtype != torch.float64:
            y[0, 0, 0, 0] += 10
        return y, partials

    monkeypatch.setattr(convolution, "conv_moments", wrong)
    spec = training_specs(TINY, torch.bfloat16)[0]
    # in truth and torch's result alike it would not be seen: ours alone is wrong
    monkeypatch.setattr(correctness.OpCase, "torchs", lambda case: case.named(right(*case.args)))
    result = phase_kernels.timed(spec, 2, context_for(tmp_path, []))
    assert result["correct"] is False
    assert "ours_ms" not in result
    assert result["worst"].startswith("result 0: ")


def test_a_result_that_is_wrong_at_the_timed_size_alone_is_found() -> None:
    case = training_specs(TINY, torch.bfloat16)[0].make(2, CPU)
    small = correctness.check(case)["results"]
    assert phase_kernels.off_at_size(case, small) is None
    ours = case.run()
    ours[0][0, 0] = 3.0
    shifted = correctness.OpCase(lambda *_: ours, case.args)
    object.__setattr__(shifted, "torchs", case.torchs)
    found = phase_kernels.off_at_size(shifted, small)
    assert found is not None
    assert found.startswith("result 0 is ")


def test_nan_on_one_side_is_infinitely_far() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert correctness.distance(nan, torch.ones(2)) == float("inf")
    assert correctness.distance(torch.ones(3), torch.ones(2)) == float("inf")


def test_other_bits_in_a_second_run_are_wrong() -> None:
    runs = iter([torch.zeros(2), torch.full((2,), 1e-7)])
    case = correctness.OpCase(lambda *_: next(runs, torch.zeros(2)), (torch.ones(1),))
    verdict = correctness.check(case)
    assert verdict["repeatable"] is False
    assert verdict["correct"] is False


def test_an_int8_result_may_differ_by_one_and_no_more() -> None:
    ours = torch.tensor([1, 2, 3, 5], dtype=torch.int8)
    for off, right in ((1, True), (2, False)):
        expected = {"y": ours + torch.tensor([0, 0, 0, off], dtype=torch.int8)}
        verdict = correctness.judged({"y": ours}, expected, expected)
        assert verdict["correct"] is right
        assert verdict["results"]["y"]["exact"] == 0.75


def test_the_int8_network_answers_like_the_one_it_was_made_from() -> None:
    x = images(TINY, 4, CPU)
    network = settle(plain(TINY, CPU), x)
    with torch.no_grad():
        expected = network(x)
        quantized = Int8Network(folded(network), x)
        found = quantized(quantized.image(x))
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.98


# What is counted


def test_resnet50_is_read_off_the_network() -> None:
    layers = distinct_layers(FULL)
    assert sum(layer.count for layer in layers) == 52
    assert sum(layer.count for layer in layers if layer.role == "projection") == 4
    stem = 2.0 * 112 * 112 * 64 * 147
    classifier = 2.0 * 2048 * 1000
    assert sum(layer.count * layer.flops(1) for layer in layers) == flops(FULL, 1) - stem - classifier
    assert flops(FULL, 1) / 2e9 == pytest.approx(4.089, abs=1e-3)


def test_a_block_launches_three_times_the_arithmetic_of_its_convolutions() -> None:
    launches = network_launches(FULL, 4, torch.bfloat16, training=True, part="layer2.0")
    layers = {layer.name: layer for layer in distinct_layers(FULL) if layer.name.startswith("layer2.0")}
    assert len(layers) == 4
    assert sum(map(flops_of, launches)) == pytest.approx(3 * sum(layer.flops(4) for layer in layers.values()))


def test_the_floor_is_the_sum_of_what_binds_each_launch() -> None:
    launches = network_launches(FULL, 4, torch.float16, training=False, part="layer1.1")
    memory_bound = Ceilings(1e12, 1e30, 1e30, None, ())
    arithmetic_bound = Ceilings(1e30, 1e12, 1e12, None, ())
    assert floor_ms(launches, arithmetic_bound) == pytest.approx(1e-9 * sum(map(flops_of, launches)))
    assert floor_ms(launches, memory_bound) > 1e-9 * 3 * 4 * 256 * 56 * 56 * 2


def test_percentiles_and_spread() -> None:
    found = timing.summary([float(value) for value in range(1, 12)])
    assert (found.median, found.min, found.p10, found.p90, found.rounds) == (6.0, 1.0, 2.0, 10.0, 11)
    assert found.spread == pytest.approx(8 / 6)


class Steady:
    """A contender that says when it was asked."""

    def __init__(self, name: str, order: list[str], times: Callable[[], float]) -> None:
        self.name, self.order, self.time, self.notes = name, order, times, []

    def times(self, count: int) -> list[float]:
        self.order.append(self.name)
        return [self.time() for _ in range(count)]


def test_contenders_take_turns_and_unstable_ones_get_more_rounds() -> None:
    order: list[str] = []
    steady = {name: Steady(name, order, lambda: 1.0) for name in "ab"}
    found = timing.race(steady, seconds=60, rounds=5)
    assert order == ["a", "b"] * 6  # once to warm up
    assert found["a"].rounds == 5
    values = iter(range(1, 1000))
    wild = {"c": Steady("c", order, lambda: float(next(values)))}
    found = timing.race(wild, seconds=60, rounds=5)
    assert found["c"].rounds == 10
    assert "c may be unstable because" in timing.notes_of(found, wild)[0]


class PretendedGraph:
    """A CUDA graph that notes what is done to it; ``refuses`` makes every capture fail."""

    refuses = False

    def __init__(self) -> None:
        self.replays = 0

    def capture_begin(self) -> None:
        assert not gc.isenabled()

    def capture_end(self) -> None:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def replay(self) -> None:
        self.replays += 1


class PretendedEvent:
    def __init__(self, **_: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: PretendedEvent) -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    monkeypatch.setattr(torch.cuda, "Event", PretendedEvent)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)


@pytest.mark.usefixtures("pretended_cuda")
def test_a_step_is_captured_once_and_replayed() -> None:
    steps: list[int] = []
    replay = timing.Replay(lambda: steps.append(1), warmup=2)
    assert len(replay.times(5)) == 5
    assert isinstance(replay.graph, PretendedGraph)
    assert (len(steps), replay.graph.replays, replay.notes) == (3, 5, [])


@pytest.mark.usefixtures("pretended_cuda")
def test_a_step_that_cannot_be_captured_is_launched_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretendedGraph, "refuses", True)
    steps: list[int] = []
    replay = timing.Replay(lambda: steps.append(1), warmup=2)
    replay.times(5)
    assert len(steps) == 8
    assert replay.notes == [
        "not in a CUDA graph: RuntimeError: operation not permitted when stream is capturing"
    ]
    assert gc.isenabled()


@pytest.mark.parametrize(("ratio", "passed"), [(1.2, True), (1.1, False)])
def test_bars_say_asked_measured_and_passed(ratio: float, passed: bool) -> None:
    report = Report({}, {"device": "cuda"}, bars=bars_for(256, 128))
    case = {
        "name": "train-b256",
        "correct": True,
        "ratio": {"torch.compile": ratio},
        "peers": {},
        "notes": [],
    }
    report.sections["cases"].append(case | {"ours_ms": {"median": 30.0}})
    first, *others = report.judged_bars()
    assert (first["asked"], first["measured"], first["passed"]) == (1.15, ratio, passed)
    assert all(bar["passed"] is None for bar in others)
    assert ("passed" in as_text(report)) is passed


# Between processes


def test_two_processes_never_hold_the_gpu_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=scripted.hold, args=(tmp_path / "lock", 1.0, ready))
    process.start()
    assert ready.wait(60)
    started = time.monotonic()
    lock = GpuLock(tmp_path / "lock")
    with lock.held(), lock.held():  # re-entrant
        assert time.monotonic() - started > 0.5
    process.join()


def test_a_lingering_lock_is_kept_between_uses_and_given_back_in_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = GpuLock(path, linger=0.3, longest=60.0)
    with lock.held():
        pass
    assert is_locked(path)
    time.sleep(1.0)
    assert not is_locked(path)
    brief = GpuLock(path, linger=60.0, longest=0.0)
    with brief.held():
        assert is_locked(path)
    assert not is_locked(path)


def is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("newer", [True, False])
def test_inductor_holds_the_lock_while_it_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    from torch._inductor.runtime import benchmarking

    given: list[Any] = []
    timer = SimpleNamespace(benchmark_gpu=lambda step: step())
    monkeypatch.setattr(benchmarking, "benchmarker", timer)
    monkeypatch.setattr(benchmarking, "set_gpu_benchmark_lock_context", given.append, raising=False)
    if not newer:
        monkeypatch.delattr(benchmarking, "set_gpu_benchmark_lock_context")
    lock = GpuLock(tmp_path / "lock")
    assert hold_while_inductor_times(lock) is None
    assert given == ([lock.held] if newer else [])
    assert timer.benchmark_gpu(lambda: lock.depth) == (0 if newer else 1)


def test_a_peer_that_dies_without_a_word_has_failed(tmp_path: Path) -> None:
    farm = Farm(tmp_path, "no such device", True, [Workload("infer", 2)])
    farm.tend()
    (process,) = farm.running.values()
    process.wait(120)
    farm.tend()
    status = json.loads((tmp_path / "infer-b2.json").read_text("utf-8"))
    assert status["state"] == "failed"
    assert "no such device" in status["reason"]
    farm.stop()


PRECOMPILE = """
import time, torch, triton
from benchmarks.gpu import warm
from fused_kernels.launch import _resolve, kernel_function, recording
from fused_kernels.ops import statistics
from fused_kernels.operands.partials import Partials

if __name__ == "__main__":
    def launches(device):
        with recording() as found:
            statistics.sums(Partials(torch.ones(2, 130, 24, device=device), 32, 4160))
        return found

    warmer = warm.Warmer(90, 1)
    wanted = warmer.add(launches("meta"))
    assert len(wanted) == 1
    assert warmer.wait(wanted, time.monotonic() + 120) == 0
    assert not warmer.failures(), warmer.failures()
    warmer.stop()
    warm._pretend(90)
    hits = []
    triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
    (launch,) = launches("meta")
    arguments = {name: _resolve(value) for name, value in launch.arguments.items()}
    kernel_function(launch.kernel).warmup(grid=launch.grid, num_warps=launch.tile.warps,
                                          num_stages=launch.tile.stages, enable_fp_fusion=launch.fp_fusion,
                                          **arguments)
    print("cache hits:", hits)
"""


@pytest.mark.slow
def test_what_is_compiled_beforehand_is_what_a_launch_asks_for(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    program = tmp_path / "precompile.py"
    program.write_text(PRECOMPILE, "utf-8")
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=300, env=clean, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "cache hits: [True]"

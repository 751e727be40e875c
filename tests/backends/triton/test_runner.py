"""The runtime gives a GPU what the plan says (a fake one, which computes in Triton's interpreter)."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.reference import ReferenceRunner
from rescompile.backends.triton.runner import PlanRunner
from rescompile.errors import BackendError, EngineError
from rescompile.manifest import Batch
from rescompile.runtime.engine import Engine
from tests.backends.cuda.fake_cuda import DlpackTensor, InterfaceArray, Through, cuda
from tests.backends.cuda.test_runner import THROUGH
from tests.backends.triton.fake_gpu import FakeGpu
from tests.backends.triton.networks import CLASSES, images
from tests.backends.triton.planned import SCRATCH, make_plan, manifest_of


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("engine")
    return folder, make_plan(folder, "cifar", "int8", batch=Batch(1, 1, 3))


def runner(
    written: tuple[Path, Plan], gpu: FakeGpu, parallel: int = 1, through: Through = "pycuda"
) -> PlanRunner:
    return PlanRunner(cuda(gpu, through), *written, parallel=parallel)


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_logits_are_those_of_the_plan_for_every_count(
    written: tuple[Path, Plan], count: int, through: Through
) -> None:
    x = images("cifar", count)
    gpu = FakeGpu(written[1])
    np.testing.assert_array_equal(runner(written, gpu, through=through)(x), ReferenceRunner(*written)(x))
    assert gpu.depth == 0


class Parameters(ctypes.Structure):
    """Parameters of the kernel that takes the image, in C's own layout."""

    _fields_ = (
        ("image", ctypes.c_uint64),
        ("scale", ctypes.c_float),
        ("out", ctypes.c_uint64),
        ("m", ctypes.c_int32),
    )


def test_ctypes_puts_arguments_where_a_kernel_reads_them(
    written: tuple[Path, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, launched = FakeGpu(written[1], computes=False), []

    def launch(function: Any, *rest: Any) -> int:
        *shape, _, _, extra = rest
        size = ctypes.cast(extra[3], ctypes.POINTER(ctypes.c_size_t)).contents.value
        launched.append((tuple(shape), ctypes.string_at(extra[1], size)))
        return 0

    monkeypatch.setattr(gpu, "cuLaunchKernel", launch)
    runner(written, gpu, through="ctypes")(images("cifar", 1))
    first = written[1].programs[0].launches[0]
    kernel = written[1].kernels[first.kernel]
    shape, packed = launched[0]
    assert shape == (*first.grid, kernel.threads, 1, 1, kernel.shared_bytes)
    assert kernel.parameters[:4] == ("*fp32", "fp32", "*i8", "i32")
    read = Parameters.from_buffer_copy(packed[: ctypes.sizeof(Parameters)])
    assert (read.scale, read.m) == (np.float32(first.arguments[1]), first.arguments[3])
    assert [
        any(m.address <= at < m.address + len(m.content) for m in gpu.memory) for at in (read.image, read.out)
    ]
    assert packed[-8 * SCRATCH :] == bytes(8 * SCRATCH)


def test_pixels_and_chains_in_fp16(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "bottleneck", "fp16", batch=Batch(1, 1, 1), pixels=True)
    x = images("bottleneck", 1, pixels=True)
    gpu = FakeGpu(plan)
    expected = ReferenceRunner(tmp_path, plan)(x)
    np.testing.assert_allclose(PlanRunner(cuda(gpu), tmp_path, plan)(x), expected, atol=5e-3)


def test_a_batch_is_captured_once_and_launched_often(written: tuple[Path, Plan]) -> None:
    gpu = FakeGpu(written[1], computes=False)
    run = runner(written, gpu)
    for count in (3, 1, 2, 3):
        run(images("cifar", count))
    # programs take 1 and 3 images: two graphs, the larger one also for 2
    assert sorted(len(work) for work in gpu.graphs.values()) == [len(p.launches) for p in written[1].programs]
    # each kernel ran once before it was captured, for drivers that load it then
    assert gpu.eager == sum(len(program.launches) for program in written[1].programs)
    three, one, *rest = gpu.launched
    assert one != three
    assert rest == [three, three]


def test_memory_is_taken_once_for_the_largest_batch(written: tuple[Path, Plan]) -> None:
    plan, gpu = written[1], FakeGpu(written[1], computes=False)
    run = runner(written, gpu)
    sizes = [len(memory.content) for memory in gpu.memory]
    run(images("cifar", 3))
    assert [len(memory.content) for memory in gpu.memory] == sizes
    assert sizes[1:] == [3 * 3 * 8 * 8 * 4, max(3 * CLASSES * 4, 256), plan.programs[-1].arena_bytes]


def test_machine_code_that_kernels_share_is_loaded_once(written: tuple[Path, Plan]) -> None:
    gpu = FakeGpu(written[1])
    runner(written, gpu)
    assert len(gpu.loaded) == len({kernel.file for kernel in written[1].kernels})


def test_earlier_images_do_not_change_an_answer(written: tuple[Path, Plan]) -> None:
    x, run = images("cifar", 3), runner(written, FakeGpu(written[1]))
    run(-x)
    np.testing.assert_array_equal(run(x[:2]), ReferenceRunner(*written)(x[:2]))


def test_images_need_not_be_contiguous(written: tuple[Path, Plan]) -> None:
    x, run = images("cifar", 4)[:, :, ::-1, ::-1][:1], runner(written, FakeGpu(written[1]))
    np.testing.assert_array_equal(run(x), ReferenceRunner(*written)(x))


@pytest.mark.parametrize("count", [0, 4])
def test_a_batch_outside_of_the_range_is_refused(written: tuple[Path, Plan], count: int) -> None:
    with pytest.raises(BackendError, match=f"{count} images at once.*takes 1 to 3"):
        runner(written, FakeGpu(written[1]))(np.zeros((count, 3, 8, 8), np.float32))


@pytest.mark.parametrize("through", THROUGH)
def test_closing_gives_everything_back_and_may_be_repeated(
    written: tuple[Path, Plan], through: Through
) -> None:
    gpu = FakeGpu(written[1], computes=False)
    run = runner(written, gpu, through=through)
    run(images("cifar", 1))
    run.close()
    run.close()
    assert (gpu.graphs, gpu.modules) == ({}, {})
    assert gpu.nothing_left()
    with pytest.raises(BackendError, match="closed"):
        run(images("cifar", 1))


def test_too_little_memory_gives_everything_back(written: tuple[Path, Plan]) -> None:
    gpu = FakeGpu(written[1], room=5000)
    with pytest.raises(BackendError, match=r"cannot run this engine: .*out of memory"):
        runner(written, gpu)
    assert gpu.nothing_left()


def test_weights_that_cannot_be_copied_leave_nothing_behind(written: tuple[Path, Plan]) -> None:
    gpu = FakeGpu(written[1])
    gpu.failing["memcpy_htod"] = 2
    with pytest.raises(BackendError, match="cannot run this engine: cumemcpy_htod failed: error 2"):
        runner(written, gpu)
    assert gpu.nothing_left()


@pytest.mark.parametrize("through", THROUGH)
def test_machine_code_that_the_driver_refuses_is_an_error(
    written: tuple[Path, Plan], tmp_path: Path, through: Through
) -> None:
    for file in written[0].iterdir():
        damaged = file.suffix == ".cubin"
        (tmp_path / file.name).write_bytes(b"garbage" if damaged else file.read_bytes())
    gpu = FakeGpu(written[1])
    with pytest.raises(BackendError, match=r"kernel image is invalid|cuModuleLoadData: .*\(error 200\)"):
        PlanRunner(cuda(gpu, through), tmp_path, written[1])
    assert gpu.nothing_left()


def test_missing_machine_code_is_named(written: tuple[Path, Plan], tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes((written[0] / "weights.safetensors").read_bytes())
    gpu = FakeGpu(written[1])
    with pytest.raises(EngineError, match=r"take_kernel-\w+\.cubin is missing"):
        PlanRunner(cuda(gpu), tmp_path, written[1])
    assert gpu.nothing_left()


@pytest.mark.parametrize("call", ["begin", "end", "instantiate", "launch"])
def test_a_graph_that_the_driver_refuses_is_an_error(written: tuple[Path, Plan], call: str) -> None:
    gpu = FakeGpu(written[1])
    gpu.failing[call] = 901
    run = runner(written, gpu)
    with pytest.raises(BackendError, match=r"the CUDA driver refuses .*\(error 901\)"):
        run(images("cifar", 1))
    assert gpu.depth == 0
    assert len(gpu.graphs) == (1 if call == "launch" else 0)
    gpu.failing.clear()
    expected: Any = ReferenceRunner(*written)(images("cifar", 1))
    np.testing.assert_array_equal(run(images("cifar", 1)), expected)
    run.close()


def test_requests_that_run_at_once_have_arenas_and_graphs_of_their_own(written: tuple[Path, Plan]) -> None:
    gpu = FakeGpu(written[1])
    requests = [images("cifar", 1), -images("cifar", 1)]
    both_there = threading.Barrier(2)
    gpu.at_synchronize = lambda: both_there.wait(120)
    engine = Engine(manifest_of(written[1]), runner(written, gpu, 2))
    with engine:
        pending = [engine.submit(x) for x in requests]
        expected = ReferenceRunner(*written)
        for future, x in zip(pending, requests, strict=True):
            np.testing.assert_array_equal(future.result(timeout=60), expected(x))
    assert gpu.nothing_left()


def test_memory_of_every_slot_is_counted_and_weights_are_there_once(written: tuple[Path, Plan]) -> None:
    sizes = []
    for parallel in (1, 3):
        gpu = FakeGpu(written[1], computes=False)
        runner(written, gpu, parallel)
        sizes.append([len(memory.content) for memory in gpu.memory])
    weights, *slot = sizes[0]
    assert sizes[1] == [weights, *slot * 3]


@pytest.mark.parametrize(("kind", "count"), [(DlpackTensor, 1), (InterfaceArray, 2)])
def test_images_on_the_gpu_are_read_where_they_are(written: tuple[Path, Plan], kind: Any, count: int) -> None:
    x, gpu = images("cifar", count), FakeGpu(written[1])
    run = runner(written, gpu)
    lent = run.import_images(kind(gpu, x))
    np.testing.assert_array_equal(run(lent), ReferenceRunner(*written)(x))
    # two images are filled up to three, in memory of the engine
    whole = len(written[1].program_for(count).launches)
    assert [len(work) for work in gpu.graphs.values()] == [whole if count == 2 else whole - 1]


def test_a_launch_that_the_driver_refuses_leaves_nothing_behind(written: tuple[Path, Plan]) -> None:
    gpu, x = FakeGpu(written[1], computes=False), images("cifar", 1)
    run = runner(written, gpu)
    launches = len(written[1].programs[0].launches)
    for working in (0, launches, 2 * launches - 1):  # before, during and after the capture
        gpu.failing["LaunchKernel"], gpu.working["LaunchKernel"] = 719, working
        with pytest.raises(BackendError, match=r"cannot run this engine: cuLaunchKernel failed: error 719"):
            run(run.import_images(InterfaceArray(gpu, x)))
        assert (gpu.captured, list(gpu.pending())) == ({}, [])
    run.close()
    assert gpu.graphs == {}
    assert gpu.nothing_left()


def test_the_runtime_imports_neither_torch_nor_triton_nor_onnx() -> None:
    program = (
        "import sys, rescompile.backends.triton.runner, rescompile.backends.triton.backend, "
        "rescompile.backends.triton.plan_file; print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "triton", "onnx", "fused_kernels"} & set(loaded.split())

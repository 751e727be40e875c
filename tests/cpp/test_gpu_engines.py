"""C++ gives a GPU what a plan of the Python package says, to a driver that is a fake one; ADR 10 has the format."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rescompile.backends.triton.plan import (
    ALIGNMENT,
    Argument,
    Images,
    Kernel,
    Launch,
    Logits,
    Memory,
    Plan,
    Program,
)
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import Batch, FileDigest
from rescompile.runtime.golden import golden_bytes
from tests.backends.triton.networks import CLASSES, images
from tests.backends.triton.planned import make_plan, manifest_of
from tests.cpp.building import run
from tests.cpp.hostile import Fields, changed

pytestmark = pytest.mark.slow

IMAGES, LOGITS, ARENA, WEIGHTS = range(4)
"""The numbers of allocations, in the order in which they are made."""
FORMATS = {"i32": "i", "i64": "q", "fp32": "f"}


@pytest.fixture(scope="module", params=["cifar-int8", "bottleneck-fp16"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """A whole directory whose machine code are stand-ins, and whose golden answers are zeros as those of the fake."""
    name, precision = request.param.split("-")
    pixels = precision == "fp16"
    folder = tmp_path_factory.mktemp(request.param)
    plan = make_plan(folder, name, precision, batch=Batch(1, 2, 3), pixels=pixels)
    for cubin in folder.glob("*.cubin"):
        cubin.write_bytes(b"\x7fELF".ljust(64, b"\0") + cubin.read_bytes())
    logits = np.zeros((6, CLASSES), np.float32)
    given = images(name, 6, pixels=pixels)
    (folder / "golden.npz").write_bytes(golden_bytes(given, logits))
    manifest = manifest_of(plan)
    listed = {**manifest.files, "golden.npz": FileDigest("0" * 64, 1)}
    crop = msgspec.structs.replace(manifest.preprocess, crop=given.shape[2])
    write_hashed_manifest(folder, msgspec.structs.replace(manifest, files=listed, preprocess=crop))
    return folder, plan


@pytest.fixture(scope="module")
def weight_offsets(engine: tuple[Path, Plan]) -> dict[str, int]:
    """Offset of each weight, by name, in the order of the names."""
    offsets, offset = {}, 0
    for name, spec in sorted(engine[1].weights.items()):
        offsets[name] = offset
        offset += -(-spec.bytes // ALIGNMENT) * ALIGNMENT
    return offsets


def check(sanitized: Path, folder: Path, **environment: str) -> str:
    """The answer of the sanitized library to an engine, with the fake driver."""
    fake = str(sanitized / "tests/fake_cuda")
    return run(sanitized / "tools/rescompile-check", folder, LD_LIBRARY_PATH=fake, **environment)


def place(argument: Argument, offsets: dict[str, int]) -> str:
    """An address in the words of the fake driver."""
    if isinstance(argument, Memory):
        return f"<{ARENA}+{argument.offset}>"
    if isinstance(argument, Images | Logits):
        return f"<{IMAGES if isinstance(argument, Images) else LOGITS}+0>"
    assert not isinstance(argument, int | float)
    return f"<{WEIGHTS}+{offsets[argument.name]}>"


def pieces(kernel: Kernel, launch: Launch, offsets: dict[str, int]) -> Iterator[str]:
    """The parameters as a C structure of them, in pieces of four bytes or whole addresses."""
    offset = 0
    for kind, argument in zip(kernel.parameters, launch.arguments, strict=True):
        size = 4 if kind in {"i32", "fp32"} else 8
        if offset % size:
            yield "[0]"
            offset += 4
        offset += size
        if kind.startswith("*"):
            yield place(argument, offsets)
        else:
            packed = struct.pack("<" + FORMATS[kind], argument)
            yield from (f"[{word}]" for word in struct.unpack(f"<{size // 4}I", packed))
    if kernel.scratch and offset % 8:
        yield "[0]"
    yield "[0][0]" * kernel.scratch


def lines(plan: Plan, program: Program, offsets: dict[str, int]) -> list[str]:
    """The launches of a program in the words of the fake driver."""
    found = []
    for launch in program.launches:
        kernel = plan.kernels[launch.kernel]
        grid = "x".join(map(str, launch.grid))
        words = "".join(pieces(kernel, launch, offsets))
        found.append(f"{kernel.entry} {grid} {kernel.threads} {kernel.shared_bytes} {words}")
    return found


def test_units_of_gpu_engines_under_address_and_undefined_sanitizers(sanitized: Path) -> None:
    shown = run(sanitized / "tests/gpu_tests")
    assert "FAIL" not in shown
    assert shown.count("ok  ") >= 20


def test_what_python_planned_is_what_the_driver_is_given(
    sanitized: Path, engine: tuple[Path, Plan], weight_offsets: dict[str, int], tmp_path: Path
) -> None:
    folder, plan = engine
    log = tmp_path / "log"
    assert check(sanitized, folder, FAKE_CUDA_LOG=str(log)) == f"good small {plan.precision} triton\n"
    said = log.read_text().splitlines()
    expected = lines(plan, plan.programs[-1], weight_offsets)
    for kind in ("launch", "capture"):
        assert [line.partition(" ")[2] for line in said if line.startswith(kind)] == expected
    # six golden images are two batches of three
    assert said.count(f"graph of {len(expected)}") == 2
    batch = plan.programs[-1].batch
    sizes = (batch * plan.image.bytes, batch * CLASSES * 4, max(p.arena_bytes for p in plan.programs))
    found = [int(line.split()[1]) for line in said if line.startswith("allocate")]
    assert found[:3] == [max(size, 256) for size in sizes]
    assert found[3] == sum(-(-spec.bytes // ALIGNMENT) * ALIGNMENT for spec in plan.weights.values())


def test_a_machine_without_a_driver_says_what_it_needs(sanitized: Path, engine: tuple[Path, Plan]) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has a CUDA driver")
    done = run("bash", "-c", f"! {sanitized / 'tools/rescompile-check'} {engine[0]}")
    assert done.startswith(
        f"bad 3 the engine in {engine[0]} cannot run here: it needs a CUDA GPU (sm_90), and "
    )
    assert "this machine has no CUDA driver (libcuda.so.1: " in done
    assert done.count("\n") == 1


def test_another_gpu_than_the_target_is_refused(
    sanitized: Path, engine: tuple[Path, Plan], tmp_path: Path
) -> None:
    def retargeted(fields: Fields) -> None:
        fields["target"] = "sm_89"

    for path in engine[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plan = tmp_path / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b'"sm_90"', b'"sm_89"'))
    changed(retargeted)(tmp_path)
    done = run("bash", "-c", f"! {sanitized / 'tools/rescompile-check'} {tmp_path}",
               LD_LIBRARY_PATH=str(sanitized / "tests/fake_cuda"))  # fmt: skip
    assert done == (
        f"bad 3 the engine in {tmp_path} cannot run here: it is for sm_89, and Fake GPU is sm_90; "
        "build it for this GPU\n"
    )

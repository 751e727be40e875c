"""The TensorRT backend compiles against NVIDIA's headers, and what is missing is said in one sentence.

TensorRT_ROOT names a folder with TensorRT's ``include``, as CMake understands it. Without it, what compiles is skipped.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rescompile.backends.cuda.devices import gpus
from tests.cpp.building import SOURCE, blocks, quickly, run
from tests.cpp.conftest import Folders
from tests.cpp.hostile import Fields, changed

pytestmark = pytest.mark.slow

ROOT = os.environ.get("TensorRT_ROOT")  # noqa: SIM112 - CMake's own spelling
RTX = importlib.util.find_spec("tensorrt_rtx_libs")


@pytest.fixture(scope="module")
def folder(build_folder: Folders) -> Path:
    return build_folder("tensorrt-missing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("TENSORRT=ON", "TENSORRT_RTX=ON"), "so one library cannot hold both: build two"),
        (("TENSORRT=ON", "INCLUDE_DIR="), "cannot be built in (nvinfer): its headers (NvInferRuntime.h)"),
        (("TENSORRT_RTX=ON", "INCLUDE_DIR=/x", "CUDA_INCLUDE_DIR="), "headers (cuda_runtime_api.h) were not"),
        (
            ("TENSORRT_RTX=ON", "INCLUDE_DIR=/x", "CUDA_INCLUDE_DIR=/x", "LIBRARY="),
            "(tensorrt_rtx): its library (libtensorrt_rtx.so) was not found: set TensorRT_LIBRARY",
        ),
    ],
)
def test_what_is_missing_is_said(folder: Path, options: tuple[str, ...], words: str) -> None:
    ours = dict.fromkeys(("RESCOMPILE_OPENVINO", "RESCOMPILE_TENSORRT", "RESCOMPILE_TENSORRT_RTX"), "OFF")
    for option in options:
        name, _, value = option.partition("=")
        ours[("RESCOMPILE_" if name.startswith("TENSORRT") else "TensorRT_") + name] = value
    done = subprocess.run(
        ["cmake", "-S", SOURCE, "-B", folder, *(f"-D{name}={value}" for name, value in ours.items())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())


@pytest.mark.skipif(ROOT is None, reason="TensorRT_ROOT names no folder with TensorRT's headers")
@pytest.mark.skipif(RTX is None, reason="the wheel tensorrt-rtx, whose library is linked, is not installed")
@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_it_compiles_and_loading_without_a_gpu_is_one_sentence(
    build_folder: Folders, engines: dict[str, Path], tmp_path: Path, flavour: str
) -> None:
    assert RTX is not None
    assert RTX.origin is not None
    # both libraries export the same symbols, so that of TensorRT for RTX stands in for the other one, too
    library = Path(RTX.origin).parent / "libtensorrt_rtx.so.1"
    root = build_folder(flavour)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "cpp").exists():
        (root / "cpp").symlink_to(SOURCE)
    option = f"-DRESCOMPILE_{flavour.replace('-', '_').upper()}=ON"
    command = next(line for line in blocks("bash")[0].splitlines() if option in line)
    command = re.sub(r"-DTensorRT_ROOT=\S+", f"-DTensorRT_ROOT={ROOT} -DTensorRT_LIBRARY={library}", command)
    quickly("bash", "-e", "-c", f"cd {root}\n{command} -DRESCOMPILE_OPENVINO=OFF -DRESCOMPILE_TESTS=ON")
    folder, engine = root / "build" / flavour, tmp_path / "engine"
    run("cmake", "--build", folder, "--target", "rescompile-check", "fake_cuda")
    shutil.copytree(engines["int8"], engine)
    (engine / "model.engine").write_bytes(b"an engine")

    def moved(fields: Fields) -> None:
        fields.update(backend=flavour, target="sm_90")
        fields["files"]["model.engine"] = {}

    changed(moved)(engine)
    check = f"! {folder / 'tools/rescompile-check'} {engine}"
    if not gpus():
        said = run("bash", "-c", check)
        assert said.startswith(f"bad 3 the engine in {engine} cannot run here: it needs a CUDA GPU (sm_90)")
        assert said.count("\n") == 1
    # past the driver, which is a fake one, the library is asked for its version before anything else
    said = run("bash", "-c", check, LD_LIBRARY_PATH=str(folder / "tests/fake_cuda"))
    refused = f"bad 3 this librescompile was built with the headers of {flavour} "
    assert said.startswith((refused, f"bad 4 {flavour} cannot load {engine / 'model.engine'}: "))
    assert said.count("\n") == 1

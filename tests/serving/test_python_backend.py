"""Our runtime inside Triton Inference Server: what the server calls, and a real server if one is installed.

`make test` installs nvidia-pytriton, whose wheel carries the server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rescompile.errors import RescompileError
from rescompile.manifest import read_manifest
from rescompile.metrics import relative_rms
from rescompile.runtime.golden import read_golden
from rescompile.runtime.loading import load
from rescompile.serving.export import ExportConfig, export
from rescompile.serving.python_backend import TritonPythonModel, answers
from rescompile.serving.triton_repository import Batching

PATIENCE = 180.0
"""Seconds for the server to be ready on a loaded machine."""


def test_requests_run_as_one_batch_and_a_wrong_one_does_not_spoil_the_others(
    small_engines: dict[str, Path],
) -> None:
    folder = small_engines["int8"]
    images, (expected,) = read_golden(folder, read_manifest(folder))
    wrong = np.full_like(images[:1], np.nan)
    with load(folder) as engine:
        first, second = answers(engine, [images[:1], images[1:4]])
        assert not isinstance(first, RescompileError)
        assert not isinstance(second, RescompileError)
        assert relative_rms(expected[:4], np.concatenate([first[0], second[0]])) < 0.05
        good, bad = answers(engine, [images[:2], wrong])
        assert isinstance(bad, RescompileError)
        assert "NaN or infinite" in str(bad)
        assert not isinstance(good, RescompileError)
        assert good[0].shape == expected[:2].shape


@pytest.mark.parametrize(("seen", "expected"), [(None, "1"), ("4,7", "7"), ("", "1")])
def test_an_instance_sees_the_gpu_that_the_server_gave_it(
    seen: str | None,
    expected: str,
    small_engines: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/engine").symlink_to(small_engines["int8"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    model, place = TritonPythonModel(), {"model_repository": str(tmp_path), "model_version": "1"}
    model.initialize({**place, "model_instance_kind": "GPU", "model_instance_device_id": "1"})
    model.finalize()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def server_files() -> Path | None:
    """The folder of the server in the installed wheel; None where this Python has none that it could use."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None or not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return None
    folder = Path(found.origin).parent / "tritonserver"
    return folder if stub_in(folder).exists() else None


def stub_in(folder: Path) -> Path:
    return folder / f"python_backend_stubs/3.{sys.version_info.minor}/triton_python_backend_stub"


@contextmanager
def serving(repository: Path, files: Path, scratch: Path) -> Iterator[str]:
    """The address of a real server of ``repository``."""
    backend = scratch / "backends/python"
    shutil.copytree(files / "backends/python", backend)
    for program in (files / "bin/tritonserver", stub_in(files)):
        copy = Path(shutil.copy(program, backend if program.name != "tritonserver" else scratch))
        copy.chmod(0o755)
    libraries = [str(files.parent.parent / "nvidia_pytriton.libs"), f"{sys.base_prefix}/lib"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (scratch / "log").open("w")
    with log, subprocess.Popen(
        [scratch / "tritonserver", f"--model-repository={repository}", f"--backend-directory={scratch / 'backends'}",
         "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"],
        env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}, stdout=log, stderr=log,
    ) as server:  # fmt: skip
        try:
            address, began = f"http://127.0.0.1:{port}/v2", time.monotonic()
            while not is_ready(address):
                waited = time.monotonic() - began
                assert server.poll() is None and waited < PATIENCE, (scratch / "log").read_text()  # noqa: PT018
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health/ready"):
            return True
    except OSError:
        return False


def ask(address: str, images) -> np.ndarray:
    fed = {"name": "input", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
    request = urllib.request.Request(f"{address}/models/net/infer", json.dumps({"inputs": [fed]}).encode())
    with urllib.request.urlopen(request) as response:
        (output,) = json.load(response)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


@pytest.mark.skipif(server_files() is None, reason="nvidia-pytriton has no server for this Python")
def test_a_real_server_gives_the_golden_answers_batches_and_refuses(
    small_engines: dict[str, Path], tmp_path: Path
) -> None:
    folder, repository = small_engines["int8"], tmp_path / "models"
    config = ExportConfig(
        server="triton", output=repository, name="net", python=True, batching=Batching(queue_delay=200_000)
    )
    assert export(folder, config).max_batch_size == 4
    model = repository / "net/1/model.py"
    # as if rescompile were installed for the server's Python, which ignores PYTHONPATH
    model.write_text(
        f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n{model.read_text()}"
    )
    images, (expected,) = read_golden(folder, read_manifest(folder))
    files = server_files()
    assert files is not None
    with serving(repository, files, tmp_path) as address, load(folder) as engine:
        ours = engine(images)
        assert relative_rms(expected, ask(address, images)) <= read_manifest(folder).golden_relative_rms
        assert relative_rms(ours, ask(address, images)) < 1e-4
        found: dict[int, np.ndarray] = {}
        threads = [
            threading.Thread(
                target=lambda place=place: found.update({place: ask(address, images[place : place + 1])})
            )
            for place in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert relative_rms(ours, np.concatenate([found[place] for place in range(4)])) < 1e-4
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, np.full_like(images[:1], np.nan))
        assert b"NaN or infinite" in refused.value.read()

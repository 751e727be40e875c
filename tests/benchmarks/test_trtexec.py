"""trtexec is asked as NVIDIA documents it, and what it builds runs in our runner (a fake program and a fake GPU)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.artifact_cache import Artifact, Failed
from benchmarks.networks import Network
from benchmarks.peers import trtexec
from benchmarks.peers.base import Missing
from benchmarks.peers.trtexec import Trtexec
from rescompile.backends.cuda import devices
from rescompile.backends.cuda.devices import Gpu
from rescompile.backends.tensorrt import backend
from tests.backends.cuda.fake_cuda import FakeCuda, cuda
from tests.backends.tensorrt.fake_trt import FakeNetwork

NET = Network("resnet20-cifar", "random", "", None)
WAYS = ("fp16", "our fp16 graph", "our int8 graph")
PROGRAM = """#!{python}
import sys
known = ("--onnx", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes", "--fp16", "--stronglyTyped",
         "--skipInference")
asked = dict((word.split("=", 1) + [""])[:2] for word in sys.argv[1:])
print("&&&& RUNNING TensorRT.trtexec")
for name in asked:
    if name not in known:
        sys.exit("[E] Unknown option: " + name)
open({log!r}, "w").write("\\n".join(sys.argv[1:]))
open(asked["--saveEngine"], "w").write("engine")
{more}
print("&&&& PASSED TensorRT.trtexec")
"""


@dataclass
class Machine:
    """A GPU, TensorRT, trtexec and engines that were built already."""

    folder: Path
    engines: dict[str, Path]
    trt: FakeNetwork

    def engine(self, net: Network, precision: str, backend: str = "openvino") -> Artifact:
        assert backend == ("openvino" if precision == "fp32" else "tensorrt")
        return Artifact(self.engines["int8" if precision == "int8" else "fp32"], 1.0, 1)

    def install(self, more: str = "") -> None:
        path = self.folder / "bin" / "trtexec"
        path.parent.mkdir(exist_ok=True)
        path.write_text(PROGRAM.format(python=sys.executable, log=str(self.folder / "log"), more=more))
        path.chmod(0o755)

    def prepare(self, way: Any) -> Any:
        return Trtexec(way).prepare(NET, self, 1)  # type: ignore[arg-type]

    @property
    def asked(self) -> dict[str, str]:
        words = [line.partition("=") for line in (self.folder / "log").read_text().splitlines()]
        return {name: value for name, _, value in words}


@pytest.fixture
def machine(tmp_path: Path, small_engines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Machine:
    trt = FakeNetwork(FakeCuda(), 10)
    monkeypatch.setattr(backend, "require", lambda module, purpose: trt)
    monkeypatch.setattr(backend, "open_driver", lambda: cuda(trt.gpu))
    monkeypatch.setattr(devices, "gpus", lambda: (Gpu("NVIDIA L4", "sm_89", "13.0"),))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(trtexec, "DEBIAN", tmp_path / "usr")
    return Machine(tmp_path, small_engines, trt)


@pytest.mark.parametrize("way", WAYS)
def test_its_engine_answers_through_our_runner(machine: Machine, way: str) -> None:
    machine.install()
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    found = machine.prepare(way)(images)
    np.testing.assert_allclose(found[:, 0], images.reshape(3, -1).sum(axis=1), rtol=1e-3, atol=1e-3)
    typed = way != "fp16"
    assert ("--stronglyTyped" in machine.asked, "--fp16" in machine.asked) == (typed, not typed)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_told_of_the_input_that_its_graph_has(machine: Machine, way: str) -> None:
    machine.install()
    machine.prepare(way)
    fed = onnx.load(machine.asked["--onnx"]).graph.input[0]
    assert [axis.dim_value for axis in fed.type.tensor_type.shape.dim[1:]] == [3, 32, 32]
    for which, count in (("min", 1), ("opt", 1), ("max", 4)):
        assert machine.asked[f"--{which}Shapes"] == f"{fed.name}:{count}x3x32x32"
    assert Path(machine.asked["--onnx"]).name == ("reference.onnx" if way == "fp16" else "model.onnx")


def test_where_it_is_not_installed_its_row_says_so(machine: Machine) -> None:
    with pytest.raises(Missing, match="trtexec is neither in PATH nor in"):
        machine.prepare("fp16")


def test_it_is_found_where_nvidias_packages_put_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install()
    monkeypatch.setenv("PATH", str(machine.folder / "nowhere"))
    monkeypatch.setattr(trtexec, "DEBIAN", machine.folder / "bin")
    assert machine.prepare("fp16") is not None


def test_without_a_gpu_nothing_is_built(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install()
    monkeypatch.setattr(devices, "gpus", lambda: ())
    with pytest.raises(Missing, match=r"nothing here can run what trtexec builds: .*there is none"):
        machine.prepare("fp16")
    assert not (machine.folder / "log").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("print('[I] x'); sys.exit('[W] first\\n[E] Error[9]: no kernel for conv1')", "no kernel for conv1$"),
        ("print('&&&& FAILED TensorRT.trtexec'); sys.exit(1)", "^trtexec: &&&& FAILED TensorRT.trtexec$"),
        ("import time; time.sleep(30)", "^trtexec was not done after 1 seconds$"),
    ],
)
def test_what_goes_wrong_is_told_in_its_last_words(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, more: str, words: str
) -> None:
    monkeypatch.setattr(trtexec, "SECONDS", 1)
    machine.install(more)
    with pytest.raises(Failed, match=words):
        machine.prepare("our int8 graph")


def test_an_option_that_it_does_not_know_any_more_is_named(machine: Machine) -> None:
    machine.install()
    path = machine.folder / "bin" / "trtexec"
    path.write_text(path.read_text().replace('"--fp16", ', ""))
    with pytest.raises(Failed, match="Unknown option: --fp16"):
        machine.prepare("fp16")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("#!/bin/sh\nexit 3\n", "^trtexec: exit code 3$"),
        ("\x7fELF of another machine", "^trtexec cannot be started: Exec format error$"),
    ],
)
def test_a_program_that_says_nothing_has_a_row_too(machine: Machine, content: str, words: str) -> None:
    machine.install()
    (machine.folder / "bin" / "trtexec").write_text(content)
    with pytest.raises(Failed, match=words):
        machine.prepare("fp16")


def test_an_engine_of_another_version_is_told(machine: Machine) -> None:
    machine.install()
    machine.trt.refused.add("engine")
    with pytest.raises(Failed, match="tensorrt refuses the engine: no engine here"):
        machine.prepare("fp16")

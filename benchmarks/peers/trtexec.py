"""NVIDIA's own command for ONNX graphs, ``trtexec``, as a peer on a GPU.

It builds the engine; our TensorRT runner calls it, from images in the host's memory to logits there, so that it
is timed as the others are. Its own figures are not used: it enqueues the next inference before it waits for the last,
and feeds noise, so they answer another question, and what was computed cannot be checked.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

from benchmarks.artifact_cache import ArtifactCache, Failed
from benchmarks.networks import Network
from benchmarks.peers.base import HALF_ALLOWED, INT8_ALLOWED, Call, Missing
from rescompile.backends import get_backend
from rescompile.errors import BackendError, BackendUnavailable
from rescompile.manifest import GRAPH, REFERENCE, TENSORRT_ENGINE, Manifest, read_manifest

DEBIAN = Path("/usr/src/tensorrt/bin")
"""Where NVIDIA's packages and containers put it, beside the usual PATH."""
SECONDS = 150
"""For one build. ResNet-50 takes about half of a minute in FP16; the whole suite has nine minutes."""

Way = Literal["fp16", "our fp16 graph", "our int8 graph"]


class Trtexec:
    """An engine that ``trtexec`` builds.

    Args:
        way: ``fp16``, a user's usual way, lets TensorRT choose the layers in FP16 of the fp32 graph. The others take
            the deployable graph of our engine, whose types it keeps: the same work as ours, built by another hand.
            There is no usual way to INT8, because without Q/DQ in the graph ``trtexec --int8`` takes random scales.
    """

    ours = False

    def __init__(self, way: Way) -> None:
        self.way, self.name = way, f"trtexec {way}"
        self.allowed = INT8_ALLOWED if "int8" in way else HALF_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Build the engine and load it."""
        program = shutil.which("trtexec") or shutil.which("trtexec", path=str(DEBIAN))
        if program is None:
            raise Missing(f"trtexec is neither in PATH nor in {DEBIAN}")
        tensorrt = get_backend("tensorrt")
        found = tensorrt.availability()
        if not found.run:
            raise Missing(f"nothing here can run what trtexec builds: {found.reason}")
        typed = self.way != "fp16"
        made = (
            artifacts.engine(net, self.way.split()[1], "tensorrt") if typed else artifacts.engine(net, "fp32")
        )
        manifest = read_manifest(made.path)
        graph = made.path / (GRAPH if typed else REFERENCE)
        engine = artifacts.folder / f"{net.name}-{self.name.replace(' ', '-')}"
        engine.mkdir(exist_ok=True)
        _build([program, *options(graph, engine / TENSORRT_ENGINE, manifest, typed=typed)])
        try:
            return tensorrt.load(engine, manifest)
        except (BackendError, BackendUnavailable) as error:
            raise Failed(str(error)) from error


def options(graph: Path, engine: Path, manifest: Manifest, *, typed: bool) -> list[str]:
    """Arguments of ``trtexec`` for the batch sizes and the input of ``manifest``.

    Args:
        typed: keep the graph's own types; else ``--fp16``, which trtexec of TensorRT 11 does not know any more.
    """
    fed, batch = manifest.inputs[0], manifest.batch
    shapes = {"min": batch.min, "opt": batch.opt, "max": batch.max}
    return [
        f"--onnx={graph}",
        f"--saveEngine={engine}",
        *(
            f"--{which}Shapes={fed.name}:{'x'.join(map(str, (count, *fed.shape[1:])))}"
            for which, count in shapes.items()
        ),
        "--stronglyTyped" if typed else "--fp16",
        "--skipInference",
    ]


def _build(command: list[str]) -> None:
    """Run ``command``.

    Raises:
        Failed: with its last error, or because it takes too long.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"trtexec was not done after {SECONDS} seconds") from error
    except OSError as error:
        raise Failed(f"trtexec cannot be started: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Failed(f"trtexec: {said[-1]}" if said else f"trtexec: exit code {done.returncode}")

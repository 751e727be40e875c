"""Whole networks on a GPU: ``python -m benchmarks.gpu_engines``; a part of ``benchmarks.gpu_suite``.

Our TensorRT and Triton engines race PyTorch in FP16, compiled and not, and the engines of trtexec, as on the CPU:
from images in the host's memory to logits there, answers checked first, in turns. The results are written anew after
each race.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.engine_races import MODES, EngineRaces
from benchmarks.networks import TINY, Budget, Network, network
from benchmarks.peers.base import HALF_ALLOWED, INT8_ALLOWED, Call, Entrant, Missing
from benchmarks.peers.torch import model_of
from benchmarks.peers.trtexec import Trtexec
from benchmarks.result_files import result_path
from benchmarks.rows import RESULTS, Results, Row, with_ratios
from benchmarks.table import lines
from rescompile.backends import get_backend
from rescompile.backends.cuda.devices import gpus
from rescompile.measuring.disturbance import Watch
from rescompile.measuring.origin import Origin, origin
from rescompile.measuring.roofline import Roofline
from rescompile.runtime.loading import load

BATCHES = (1, 8, 32, 128)


class OurGpuEngine:
    """An engine directory for this GPU."""

    ours = True

    def __init__(self, backend: str, precision: str) -> None:
        self.backend, self.precision = backend, precision
        self.name = f"rescompile {backend} {precision}"
        self.allowed = INT8_ALLOWED if precision == "int8" else HALF_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Build and load it."""
        found = get_backend(self.backend).availability()
        if not (found.build and found.run):
            raise Missing(found.reason)
        return load(artifacts.engine(net, self.precision, self.backend).path)


class TorchHalf:
    """PyTorch in FP16 and channels_last, by eager, Inductor's longest search, or Torch-TensorRT."""

    ours, allowed = False, HALF_ALLOWED

    def __init__(self, how: str) -> None:
        self.how = how
        self.name = {
            "eager": "PyTorch eager fp16",
            "max-autotune": "torch.compile max-autotune fp16",
            "torch_tensorrt": "Torch-TensorRT fp16",
        }[how]

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Load the weights onto the GPU, and compile."""
        import torch

        if not torch.cuda.is_available():
            raise Missing("torch sees no GPU")
        if self.how == "torch_tensorrt" and find_spec("torch_tensorrt") is None:
            raise Missing("torch_tensorrt is not installed")
        model: Any = model_of(net, threads).cuda().half().to(memory_format=torch.channels_last)
        if self.how == "max-autotune":
            model = torch.compile(model, mode="max-autotune")
        elif self.how == "torch_tensorrt":
            model = torch.compile(
                model, backend="torch_tensorrt", options={"enabled_precisions": {torch.half}}
            )

        def call(images: NDArray[Any]) -> NDArray[np.float32]:
            with torch.inference_mode():
                fed = torch.from_numpy(images).cuda().half().contiguous(memory_format=torch.channels_last)
                logits: NDArray[np.float32] = model(fed).float().cpu().numpy()
                return logits

        return call


ENTRANTS: tuple[Entrant, ...] = (
    *(
        OurGpuEngine(backend, precision)
        for backend in ("tensorrt", "triton")
        for precision in ("int8", "fp16")
    ),
    TorchHalf("eager"),
    TorchHalf("max-autotune"),
    TorchHalf("torch_tensorrt"),
    Trtexec("fp16"),
    Trtexec("our fp16 graph"),
    Trtexec("our int8 graph"),
)


def gpu_roofline() -> Roofline:
    """The GPU's own rates; those of a small machine where there is none."""
    import torch

    from benchmarks.gpu.ceilings import measure

    there = torch.cuda.is_available()
    found = measure(torch.device("cuda" if there else "cpu"), tiny=not there)
    return Roofline(
        memory_bytes_per_second=found.bytes_per_second,
        cache_bytes_per_second=found.bytes_per_second,
        cache_bytes=0,
        float_ops_per_second=found.flops,
        int8_ops_per_second=found.int8_ops,
        threads=1,
    )


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Race, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="resnet50", help="which, with commas between (resnet50)")
    parser.add_argument("--budget-seconds", type=float, default=200.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a minute network, to try the code")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="gpu-engines-"))
    try:
        wrong = _race(asked, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if wrong else 0)


def _race(asked: argparse.Namespace, folder: Path) -> bool:
    """Race all networks; whether an engine of ours was wrong."""
    began, watch, source = time.monotonic(), Watch(), _origin()
    races = EngineRaces(
        ArtifactCache(folder, batch_max=max(BATCHES)),
        Budget(asked.budget_seconds / 60),
        gpu_roofline(),
        1,
        0.2 if asked.tiny else 5.0,
        ENTRANTS,
        batches=(1, 2) if asked.tiny else BATCHES,
    )
    default = result_path(RESULTS, source)
    path = asked.output or default.with_name(f"{default.stem}-engines.json")
    rows: list[Row] = []
    for name in [TINY] if asked.tiny else asked.networks.split(","):
        for mode in MODES:
            rows = with_ratios([*rows, *races.rows_of(network(name, folder), mode)])
            timings = {f"{row.case}: {row.contender}": row.timing for row in rows if row.timing}
            results = Results(
                command="python -m benchmarks.gpu_engines",
                seconds=time.monotonic() - began,
                origin=source,
                roofline=races.roofline,
                rows=tuple(rows),
                bars=(),
                notes=tuple(watch.notes(timings)),
            )
            results.write(path)
    print(*lines(results), f"written to {path}", sep="\n")
    return any((row.skipped or "").startswith("WRONG") and row.ours for row in rows)


def _origin() -> Origin:
    """The origin of the figures, with the GPU as the device if there is one."""
    found = origin(1)
    there = gpus()
    if not there:
        return found
    machine = {name: value for name, value in found.machine.items() if name != "cores"}
    return msgspec.structs.replace(found, device=there[0].name, machine=machine)


if __name__ == "__main__":
    main()

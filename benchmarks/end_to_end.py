"""Measures photographs a second from file to class: ``rescompile run``'s loop beside OpenVINO's with OpenCV.

    python -m benchmarks.end_to_end resnet50-int8-openvino photos/ --peer nncf.xml

Both decode, resize, crop, normalize and infer in as many threads as the CPU has, and go over the folder in turns. The
peer reads files and resizes with OpenCV (package ``opencv-python-headless``) and runs the model of ``--peer``, such as
one of NNCF, on OpenVINO alone, one photograph a request, or ``--peer-batch`` of them. OpenCV's bilinear resize does not
smooth as Pillow's does, with which networks are trained; it is faster for that. Loading the engines is not counted.
Prints one JSON object; the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import rescompile
from calibration.images.listing import image_files
from calibration.preprocess import Preprocess
from rescompile.environment import available_cores, describe
from rescompile.errors import USER_ERRORS, UsageError
from rescompile.optional import installed
from rescompile.runtime.classify import classify_with


class EndToEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Photographs a second in each round, wall time; CPU milliseconds a photograph, medians."""

    cpu: str
    photos: int
    threads: int
    peer_batch: int
    rescompile: list[float]
    peer: list[float]
    rescompile_cpu_ms: float
    peer_cpu_ms: float | None
    ratio: float | None
    """Median of ours over the peer's, by wall time."""
    cpu_ratio: float | None
    """The same by CPU time, which other programs on the machine disturb less."""


def opencv_loop(model: Path, steps: Preprocess, batch: int) -> Callable[[Sequence[Path]], list[int]]:
    """The classes of photographs by OpenCV and the OpenVINO ``model``.

    Raises:
        UsageError: OpenCV is missing, or resizes otherwise than ``steps`` ask.
    """
    if not model.is_file():
        raise UsageError(
            f"--peer {model} does not exist; pass the .xml file of an OpenVINO model, or leave it out"
        )
    if not installed("cv2"):
        raise UsageError("the peer needs OpenCV: run pip install opencv-python-headless, or leave --peer out")
    short = steps.resize
    if not isinstance(short, int) or steps.color != "RGB":
        raise UsageError("the peer's loop resizes the shorter side of RGB images; pass an ImageNet engine")
    import cv2
    import openvino as ov

    cv2.setNumThreads(1)
    core, (height, width) = ov.Core(), steps.size
    compiled = core.compile_model(core.read_model(model), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    mean, std = (np.array(each, np.float32) * 255 for each in (steps.mean, steps.std))
    own = threading.local()

    def image_of(photo: Path) -> Any:
        pixels: Any = cv2.imread(str(photo))
        rows, columns = pixels.shape[:2]
        scale = short / min(rows, columns)
        pixels = cv2.resize(
            pixels, (round(columns * scale), round(rows * scale)), interpolation=cv2.INTER_LINEAR
        )
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = cv2.cvtColor(pixels[top : top + height, left : left + width], cv2.COLOR_BGR2RGB)
        return ((pixels.astype(np.float32) - mean) / std).transpose(2, 0, 1)

    def answer(photos: Sequence[Path]) -> list[int]:
        images = np.stack([image_of(photo) for photo in photos])
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        classes: list[int] = own.request.infer([images])[0].argmax(axis=1).tolist()
        return classes

    def loop(photos: Sequence[Path]) -> list[int]:
        groups = [photos[start : start + batch] for start in range(0, len(photos), batch)]
        with ThreadPoolExecutor(available_cores()) as pool:
            return [each for answers in pool.map(answer, groups) for each in answers]

    return loop


def measure(
    directory: Path, photos: Sequence[Path], *, peer: Path | None, peer_batch: int = 1, rounds: int
) -> EndToEnd:
    """Go over ``photos`` in turns.

    Raises:
        RescompileError: the engine cannot be loaded, a photograph cannot be read, or the peer cannot run.
    """
    with rescompile.load(directory, hint="throughput") as engine:
        loops: dict[str, Callable[[Sequence[Path]], Any]] = {
            "rescompile": lambda given: classify_with(engine, given, top=1)
        }
        if peer is not None:
            loops["peer"] = opencv_loop(peer, engine.manifest.preprocess, peer_batch)
        rates: dict[str, list[float]] = {"rescompile": [], "peer": []}
        cpu: dict[str, list[float]] = {"rescompile": [], "peer": []}
        for loop in loops.values():
            loop(photos[: 16 * available_cores()])
        for _ in range(rounds):
            for name, loop in loops.items():
                began, used = time.perf_counter(), time.process_time()
                loop(photos)
                rates[name].append(len(photos) / (time.perf_counter() - began))
                cpu[name].append(1e3 * (time.process_time() - used) / len(photos))
    return EndToEnd(
        cpu=describe()["cpu"],
        peer_batch=peer_batch,
        photos=len(photos),
        threads=available_cores(),
        rescompile=rates["rescompile"],
        peer=rates["peer"],
        rescompile_cpu_ms=float(np.median(cpu["rescompile"])),
        peer_cpu_ms=float(np.median(cpu["peer"])) if peer else None,
        ratio=float(np.median(np.divide(rates["rescompile"], rates["peer"]))) if peer else None,
        cpu_ratio=float(np.median(np.divide(cpu["peer"], cpu["rescompile"]))) if peer else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the command line says, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", type=Path)
    parser.add_argument("photos", type=Path, help="image file, or folder of them")
    parser.add_argument("--peer", type=Path, help="OpenVINO model to compare with")
    parser.add_argument("--peer-batch", type=int, default=1, help="photographs per request of the peer")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.peer_batch < 1:
        parser.error("--rounds and --peer-batch must be 1 or more")
    try:
        found = measure(
            options.engine,
            image_files([options.photos]),
            peer=options.peer,
            peer_batch=options.peer_batch,
            rounds=options.rounds,
        )
    except USER_ERRORS as error:
        parser.error(str(error))
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

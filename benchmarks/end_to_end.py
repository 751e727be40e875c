"""Measures photographs a second from file to class: ``rescompile run``'s loop beside OpenVINO's with OpenCV.

    python -m benchmarks.end_to_end resnet50-int8-openvino photos/ --peer nncf.xml --program classify-folder

All decode, resize, crop, normalize and infer in as many threads as the CPU has, and go over the folder in turns. The
peer reads files and resizes with OpenCV (package ``opencv-python-headless``) and runs the model of ``--peer``, such as
one of NNCF, on OpenVINO alone, one photograph a request, or ``--peer-batch`` of them. OpenCV's bilinear resize does not
smooth as Pillow's does, with which networks are trained; it is faster for that. ``--program`` is the C++ example, which
joins the turns. Loading the engines is not counted. Prints one JSON object; the ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import rescompile
from calibration.cores import available_cores
from calibration.images.listing import image_files
from calibration.preprocess import Preprocess
from rescompile.environment import describe
from rescompile.errors import USER_ERRORS, UsageError
from rescompile.manifest import read_manifest
from rescompile.optional import installed
from rescompile.runtime.classify import classify_with, options_for


class Loop(msgspec.Struct, frozen=True, kw_only=True):
    """One contender."""

    rates: list[float]
    """Photographs a second in each round, wall time."""
    cpu_ms: float
    """CPU milliseconds a photograph, median."""
    ratio: float | None = None
    """Median of its rate over the peer's."""
    cpu_ratio: float | None = None
    """The same by CPU time, which other programs on the machine disturb less."""


class EndToEnd(msgspec.Struct, frozen=True, kw_only=True):
    """The result: ``rescompile``, and ``program`` and ``peer`` where they were asked for."""

    cpu: str
    photos: int
    threads: int
    peer_batch: int
    loops: dict[str, Loop]


Photos = Sequence[Path]
Timed = Callable[[Photos], tuple[float, float]]
"""Goes over photographs; returns the seconds that took, and the CPU seconds."""


def timed(loop: Callable[[Photos], Any]) -> Timed:
    """A loop in this process."""

    def run(photos: Photos) -> tuple[float, float]:
        began, used = time.perf_counter(), time.process_time()
        loop(photos)
        return time.perf_counter() - began, time.process_time() - used

    return run


def program_loop(program: Path, engine: Path) -> Timed:
    """The C++ example ``classify-folder``, less the CPU time that it takes to load the engine.

    Raises:
        UsageError: it cannot be run, or refuses the engine or a photograph.
    """

    def once(photos: Photos) -> tuple[float, float]:
        with TemporaryDirectory() as folder:
            for number, photo in enumerate(photos):
                Path(folder, f"{number:06}{photo.suffix}").symlink_to(photo.resolve())
            used = children_seconds()
            try:
                done = subprocess.run([program, engine, folder], capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                reason = getattr(error, "stderr", None) or str(error)
                raise UsageError(f"--program {program} cannot run: {reason.strip()}") from None
            rate = re.search(r"([0-9.]+) images/s", done.stderr)
            if rate is None:
                raise UsageError(f"--program {program} prints no images/s; pass the example classify-folder")
            return len(photos) / float(rate[1]), children_seconds() - used

    def run(photos: Photos) -> tuple[float, float]:
        few = photos[: 2 * available_cores()]
        if len(few) == len(photos):
            return once(photos)
        (_, loading), (seconds, used) = once(few), once(photos)
        # both runs loaded the engine, so their difference is that of the other photographs
        return seconds, (used - loading) * len(photos) / (len(photos) - len(few))

    return run


def children_seconds() -> float:
    """CPU seconds of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def opencv_loop(model: Path, steps: Preprocess, batch: int) -> Callable[[Photos], list[int]]:
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
    network = core.read_model(model)
    network.reshape([batch, 3, height, width])  # compiled for one batch size, as ours is
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
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

    def answer(photos: Photos) -> list[int]:
        images = np.stack([image_of(photo) for photo in photos])
        images = images[np.minimum(np.arange(batch), len(photos) - 1)]  # the last request is filled up
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        classes: list[int] = own.request.infer([images])[0].argmax(axis=1).tolist()
        return classes[: len(photos)]

    def loop(photos: Photos) -> list[int]:
        groups = [photos[start : start + batch] for start in range(0, len(photos), batch)]
        with ThreadPoolExecutor(available_cores()) as pool:
            return [each for answers in pool.map(answer, groups) for each in answers]

    return loop


def measure(
    directory: Path,
    photos: Photos,
    *,
    peer: Path | None,
    peer_batch: int = 1,
    program: Path | None = None,
    rounds: int,
) -> EndToEnd:
    """Go over ``photos`` in turns.

    Raises:
        RescompileError: the engine cannot be loaded, a photograph cannot be read, or a contender cannot run.
    """
    with rescompile.load(directory, options=options_for(photos, read_manifest(directory))) as engine:
        loops: dict[str, Timed] = {"rescompile": timed(lambda given: classify_with(engine, given, top=1))}
        if program is not None:
            loops["program"] = program_loop(program, directory)
        if peer is not None:
            loops["peer"] = timed(opencv_loop(peer, engine.manifest.preprocess, peer_batch))
        for loop in loops.values():
            loop(photos[: 16 * available_cores()])
        found = {name: np.empty((rounds, 2)) for name in loops}
        orders = Random(0)
        for number in range(rounds):
            # whoever comes behind the same contender each time has its caches and its waiting threads
            for name in orders.sample(list(loops), len(loops)):
                found[name][number] = loops[name](photos)
    theirs = found.get("peer")
    return EndToEnd(
        cpu=describe()["cpu"],
        photos=len(photos),
        threads=available_cores(),
        peer_batch=peer_batch,
        loops={
            name: _result(times, len(photos), None if name == "peer" else theirs)
            for name, times in found.items()
        },
    )


def _result(times: NDArray[np.float64], photos: int, peer: NDArray[np.float64] | None) -> Loop:
    """``times`` [rounds, 2] are seconds and CPU seconds of each round."""
    ratios = (None, None) if peer is None else np.median(peer / times, axis=0).tolist()
    return Loop(
        rates=(photos / times[:, 0]).tolist(),
        cpu_ms=1e3 * float(np.median(times[:, 1])) / photos,
        ratio=ratios[0],
        cpu_ratio=ratios[1],
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
    parser.add_argument("--program", type=Path, help="the C++ example classify-folder, to run in turns")
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
            program=options.program,
            rounds=options.rounds,
        )
    except USER_ERRORS as error:
        parser.error(str(error))
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

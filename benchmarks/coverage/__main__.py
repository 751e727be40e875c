"""``python -m benchmarks.coverage``: see the package."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.coverage.contenders import CONTENDERS, Images, Result
from benchmarks.coverage.networks import NETWORKS, answers, export, make
from benchmarks.coverage.page import PAGE, Coverage, Network, page
from benchmarks.result_files import result_path
from benchmarks.rows import RESULTS
from calibration.images import open_image_set
from calibration.preprocess import IMAGENET, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.files import atomic_write
from rescompile.measuring.origin import origin

PACKAGES = ("torch", "torchvision", "timm", "openvino", "nncf", "onnxruntime")


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write the page; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--networks", default="*", help="such as 'timm:*d,torchvision:resnet18'")
    parser.add_argument("--images", type=int, default=100, help="to compare on")
    parser.add_argument("--calibration-images", type=int, default=100, help="others to calibrate on")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--output", type=Path, default=PAGE)
    parser.add_argument("--resume", type=Path, help="raw results to continue from; the run adds to them")
    asked = parser.parse_args(words)
    data = os.environ.get("RESCOMPILE_DATA")
    if not data:
        print(
            "error: RESCOMPILE_DATA must name a folder with imagenet/calibration and imagenet/validation",
            file=sys.stderr,
        )
        return 1
    patterns = asked.networks.split(",")
    chosen = [name for name in NETWORKS if any(fnmatch(name, pattern) for pattern in patterns)]
    found, path = _begun(asked)
    done = {network.name: network for network in found.networks}
    with tempfile.TemporaryDirectory(prefix="rescompile-coverage-") as name, Progress() as bar:
        images = _images(
            Path(data) / "imagenet", asked.calibration_images, asked.images, asked.size, Path(name)
        )
        for network in bar.track(chosen, description="networks"):
            if network not in done:
                done[network] = _measured(network, images, Path(name))
                networks = tuple(done[each] for each in NETWORKS if each in done)
                found = msgspec.structs.replace(found, networks=networks)
                found.write(path)
    atomic_write(asked.output, page(found, path).encode())
    print(f"written to {path} and {asked.output}")
    return 0


def _begun(asked: argparse.Namespace) -> tuple[Coverage, Path]:
    """The results so far, and their file; those of another size or other numbers of images cannot be added to."""
    if asked.resume is not None:
        found = msgspec.json.decode(asked.resume.read_bytes(), type=Coverage)
        if (found.calibration_images, found.images, found.size) != (
            asked.calibration_images, asked.images, asked.size
        ):  # fmt: skip
            raise SystemExit(f"error: {asked.resume} was measured with other images; leave --resume out")
        return found, asked.resume
    made = origin()
    plain = result_path(RESULTS, made)
    options = f"--images {asked.images} --calibration-images {asked.calibration_images} --size {asked.size}"
    found = Coverage(
        command=f"python -m benchmarks.coverage {options}",
        origin=made, images=asked.images, calibration_images=asked.calibration_images, size=asked.size,
        versions={package: version(package) for package in PACKAGES}, networks=(),
    )  # fmt: skip
    return found, plain.with_name(f"coverage-{plain.name}")


def _images(folder: Path, to_calibrate: int, to_compare: int, size: int, output: Path) -> Images:
    steps = type(IMAGENET)(
        resize=size, crop=size, interpolation="bilinear", mean=IMAGENET.mean, std=IMAGENET.std, color="RGB"
    )

    def pixels(name: str, count: int) -> NDArray[np.uint8]:
        batches = open_image_set(folder / name, limit=count).batches(steps, count)
        return np.concatenate([batch.images for batch in batches])

    calibration, validation = pixels("calibration", to_calibrate), pixels("validation", to_compare)
    np.savez(output / "pixels.npz", images=calibration)
    np.savez(output / "calibration.npz", images=normalize(calibration, steps))
    return Images(
        calibration=output / "calibration.npz", pixels=output / "pixels.npz",
        validation=normalize(validation, steps), size=size,
    )  # fmt: skip


def _measured(name: str, images: Images, folder: Path) -> Network:
    path = folder / "network.onnx"
    try:
        with np.load(images.calibration) as arrays:
            network = make(name, arrays["images"])
        export(network, images.size, path)
    except Exception as error:  # a package may not know the network, or torch may not export it
        return Network(name=name, failed=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}")
    expected = answers(reference_session(path, optimize=True), images.validation)
    results = []
    for contender in CONTENDERS:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            try:
                results.append(contender(path, images, expected, Path(own)))
            except RuntimeError as error:  # a runtime refuses what its own tool made
                results.append(Result(contender=contender.__name__, failed=str(error).splitlines()[0][:160]))
        print(f"{name}: {results[-1]}", file=sys.stderr)
    return Network(name=name, results=tuple(results))


if __name__ == "__main__":
    sys.exit(main())

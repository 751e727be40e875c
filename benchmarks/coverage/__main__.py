"""``python -m benchmarks.coverage``: see the package."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.coverage.contenders import CONTENDERS, Images
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
    parser.add_argument("--images", type=int, default=100, help="to calibrate on, and others to compare on")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--output", type=Path, default=PAGE)
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
    with tempfile.TemporaryDirectory(prefix="rescompile-coverage-") as name, Progress() as bar:
        images = _images(Path(data) / "imagenet", asked.images, asked.size, Path(name))
        networks = tuple(
            _measured(network, images, Path(name)) for network in bar.track(chosen, description="networks")
        )
    made = origin()
    plain = result_path(RESULTS, made)
    path = plain.with_name(f"coverage-{plain.name}")
    found = Coverage(
        command=" ".join(["python -m benchmarks.coverage", *(sys.argv[1:] if words is None else words)]),
        origin=made, images=len(images.validation), size=asked.size,
        versions={package: version(package) for package in PACKAGES}, networks=networks,
    )  # fmt: skip
    found.write(path)
    atomic_write(asked.output, page(found, path).encode())
    print(f"written to {path} and {asked.output}")
    return 0


def _images(folder: Path, count: int, size: int, output: Path) -> Images:
    steps = type(IMAGENET)(
        resize=size, crop=size, interpolation="bilinear", mean=IMAGENET.mean, std=IMAGENET.std, color="RGB"
    )

    def pixels(name: str) -> Iterator[np.ndarray]:
        for batch in open_image_set(folder / name, limit=count).batches(steps, count):
            yield batch.images

    calibration, validation = (np.concatenate(list(pixels(name))) for name in ("calibration", "validation"))
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
            results.append(contender(path, images, expected, Path(own)))
        print(f"{name}: {results[-1]}", file=sys.stderr)
    return Network(name=name, results=tuple(results))


if __name__ == "__main__":
    sys.exit(main())

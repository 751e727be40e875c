"""``python -m benchmarks.zoo``: see the package.

``TENSORFLOW_PYTHON`` names a Python with tensorflow-cpu and tf2onnx, which then runs Keras's files and converts the
SavedModel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.result_files import result_path
from benchmarks.rows import RESULTS
from benchmarks.zoo.files import FILES, File
from benchmarks.zoo.page import PAGE, Row, Zoo, page
from calibration.preprocess import CIFAR, Preprocess, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.files import atomic_write
from rescompile.measuring.origin import origin

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "openvino", "onnxruntime")
CALIBRATION_IMAGES, FIRST = 512, 2000
LIMIT_SECONDS = 900


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write the page; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--files", default="*", help="such as 'torch/*,onnx/*'")
    parser.add_argument("--output", type=Path, default=PAGE)
    asked = parser.parse_args(words)
    if not (folder := os.environ.get("RESCOMPILE_DATA")):
        print("error: RESCOMPILE_DATA must name a folder with zoo and cifar10", file=sys.stderr)
        return 1
    patterns = asked.files.split(",")
    chosen = [file for file in FILES if any(fnmatch(file.path, pattern) for pattern in patterns)]
    rows = []
    with tempfile.TemporaryDirectory(prefix="rescompile-zoo-") as name:
        work = Work(Path(folder), Path(name))
        for file in chosen:
            rows += work.rows(file)
            print(rows[-1], file=sys.stderr)
    made = origin()
    plain = result_path(RESULTS, made)
    path = plain.with_name(f"zoo-{plain.name}")
    found = Zoo(
        command=" ".join(["python -m benchmarks.zoo", *(sys.argv[1:] if words is None else words)]),
        origin=made, calibration_images=CALIBRATION_IMAGES, validation_images=10_000, rows=tuple(rows),
        versions={package: version(package) for package in PACKAGES},
    )  # fmt: skip
    found.write(path)
    atomic_write(asked.output, page(found, path).encode())
    print(f"written to {path} and {asked.output}")
    return 0


class Work:
    """Image sets in a folder, and the builds that are judged on them."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.tensorflow = os.environ.get("TENSORFLOW_PYTHON")
        self.test = data / "cifar10/test.npz"
        for path, name, count in (
            (self.test, "first", FIRST),
            (data / "cifar10/train_10k.npz", "calibration", CALIBRATION_IMAGES),
        ):
            with np.load(path) as arrays:
                np.savez(
                    folder / f"{name}.npz", images=arrays["images"][:count], labels=arrays["labels"][:count]
                )
        with np.load(self.test) as arrays:
            np.savez(folder / "unlabelled.npz", images=arrays["images"])

    def rows(self, file: File) -> list[Row]:
        """The row of a file, and a second one where the file has to be converted first."""
        row = Row(
            name=file.path,
            measured=None if file.measured is None else file.measured / 100,
            measured_on=10_000 if file.on_all else FIRST,
        )
        own = self._own(file)
        if own is not None:
            row = msgspec.structs.replace(row, own_tool=own[0], own_top1=own[1])
        row = self._built(file, row, file.words(self.data))
        if file.path != "tensorflow/saved_model" or self.tensorflow is None:
            return [row]
        converted = self.folder / "saved_model.onnx"
        _run([self.tensorflow, "-m", "tf2onnx.convert", "--saved-model", str(self.data / "zoo" / file.path),
              "--output", str(converted)])  # fmt: skip
        words = replace(file, path=str(converted)).words(self.data)
        return [
            row,
            self._built(
                file, msgspec.structs.replace(row, name=f"{file.path}, by tf2onnx", said=None), words
            ),
        ]

    def _built(self, file: File, row: Row, words: list[str]) -> Row:
        output = self.folder / "engine"
        test = self.test if file.classes else self.folder / "unlabelled.npz"
        command = [
            sys.executable, "-m", "rescompile", "build", *words, "--precision", "int8", "--backend", "openvino",
            "--calibration-set", str(self.folder / "calibration.npz"), "--validation-set", str(test),
            "--validate", "all",
            "--output", str(output), "--force",
        ]  # fmt: skip
        done = _run(command)
        if done.returncode == 1:
            (line,) = done.stderr.strip().splitlines()[-1:]
            return msgspec.structs.replace(row, said=line.replace(str(self.data), "DATA"))
        if done.returncode == 3:
            output = output.with_name("engine.failed")
        report = json.loads((output / "report.json").read_text())
        first: dict[str, Any] = {}
        if file.measured is not None:
            again = [
                "verify",
                str(output),
                "--validation-set",
                str(self.folder / "first.npz"),
                "--validate",
                "all",
                "--json",
            ]
            first = json.loads(_run([sys.executable, "-m", "rescompile", *again]).stdout)
        return msgspec.structs.replace(
            row,
            network=json.loads((output / "manifest.json").read_text())["model"],
            fp32_first=first.get("top1_reference"), fp32=report["top1_reference"], int8=report["top1_engine"],
            agreement=report["top1_agreement"], relative_rms=report["relative_rms"],
            said=report["misfit"] if done.returncode == 3 else None,
        )  # fmt: skip

    def _own(self, file: File) -> tuple[str, float] | None:
        """The tool that the file belongs to, where it is installed, and its top-1 on all test images."""
        path = self.data / "zoo" / file.path
        if file.path.endswith(".onnx"):
            mean, std = file.normalization or (None, None)
            own = CIFAR if mean is None else _preprocess(mean, std)
            return "ONNX Runtime", self._by_onnxruntime(path, own)
        keras = file.path.startswith(("keras/", "tensorflow/")) and not file.path.endswith(".weights.h5")
        if self.tensorflow is None or not keras or not file.classes:
            return None
        script = ROOT / "benchmarks/zoo/by_tensorflow.py"
        done = _run([self.tensorflow, str(script), str(path), str(self.test)])
        return "TensorFlow", float(done.stdout.splitlines()[-1])

    def _by_onnxruntime(self, path: Path, preprocess: Preprocess) -> float:
        with np.load(self.test) as arrays:
            images, labels = normalize(arrays["images"], preprocess), arrays["labels"]
        run = reference_session(path, optimize=True)
        # some files take one image at a time
        return float(
            np.mean([run(image[None]).argmax() == label for image, label in zip(images, labels, strict=True)])
        )


def _preprocess(mean: str, std: str | None) -> Preprocess:
    assert std is not None
    values = [tuple(map(float, text.split(","))) for text in (mean, std)]
    return msgspec.structs.replace(CIFAR, mean=values[0], std=values[1])


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, check=False, text=True, timeout=LIMIT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())

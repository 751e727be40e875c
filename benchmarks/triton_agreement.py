"""Compares a Triton INT8 engine's plan with ONNX Runtime: how often the classes agree, and why integers differ.

    python -m benchmarks.triton_agreement resnet50-int8-triton --images imagenet/validation --limit 300

Both start from the deployable graph. The plan's executor adds up integers exactly and rounds once. ONNX Runtime, with
optimizations off, executes Q/DQ in fp32, on the graph with its zero points in place: the integers are the same, without
constant channels, whose large sums would cancel (``graph.full_range``). Where a value lies at a tie between two
integers, the two may differ by one, and that difference spreads. With ``--explain N`` every tensor of N images is
computed from ONNX Runtime's own inputs to it, so that nothing spreads, and for every integer that differs the distance
of its real value from the tie is shown.

``--control fp32`` runs PyTorch instead of the executor. It executes Q/DQ in fp32 as ONNX Runtime does, but adds up in
another order: two fp32 executions of one graph differ by this much, so no third can be expected to differ less.
``--control fp64`` computes in fp64, where almost only the quantizers round, and shows the error of ONNX Runtime itself.
Every image whose class differs is shown with the lead of its class in ONNX Runtime's logits and the RMS by which its
logits differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.agreement_results import Agreement, AgreementReport, Difference, Parted
from benchmarks.onnx_in_pytorch import execute
from calibration.errors import CalibrationError
from calibration.images import open_image_set
from calibration.preprocess import normalize
from fused_kernels.launch import implementation
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.triton.lowering.network import lower
from rescompile.backends.triton.step_executor import StepExecutor
from rescompile.backends.triton.steps import Head, writes
from rescompile.errors import EngineError, RescompileError
from rescompile.graph.full_range import unfold_zero_points
from rescompile.manifest import GRAPH, Manifest, read_manifest
from rescompile.measuring.origin import origin
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.loading import simulate

Network = Callable[[NDArray[Any]], NDArray[np.floating]]
BATCH = 4
_CONTROLS = {"fp32": torch.float32, "fp64": torch.float64}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the agreement and the differences, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triton_agreement", description=__doc__)
    parser.add_argument("engine", type=Path, help="directory of an INT8 engine of the backend triton")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images or an .npz")
    parser.add_argument("--limit", type=int, default=300, help="compare at most this many images")
    parser.add_argument("--explain", type=int, default=0, help="compare every tensor of this many images")
    parser.add_argument(
        "--control", choices=list(_CONTROLS), help="execute the graph with PyTorch instead of the plan"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args(argv)
    if asked.limit < 1 or asked.explain < 0:
        parser.error("--limit must be 1 or more, --explain 0 or more")
    try:
        _compare(asked)
    except (RescompileError, CalibrationError) as error:
        parser.exit(1, f"error: {error}\n")


def _compare(asked: argparse.Namespace) -> None:
    manifest = read_manifest(asked.engine)
    images = np.concatenate(list(_images(manifest, asked.images, asked.limit)))
    model = _with_zero_points(asked.engine)
    control = None if asked.control is None else partial(in_pytorch, model, _CONTROLS[asked.control])
    agreement = agree(asked.engine, images, control)
    for image in agreement.parted:
        print(
            f"image {image.index}: class {image.expected} became {image.found}; its lead was {image.lead:.4f}, the "
            f"logits differ by {image.rms:.4f}"
        )
    print(
        f"{agreement.images} images: top-1 agreement {100 * agreement.same_class:.3f} %, same logits on "
        f"{100 * agreement.same_logits:.1f} %, relative RMS {agreement.relative_rms:.5f}"
    )
    found = explain(onnx.load(asked.engine / GRAPH), images[: asked.explain]) if asked.explain else []
    for row in found:
        print(
            f"{row.tensor:24} {row.differ:8} of {row.values:10} differ, by {row.largest_step} at most, "
            f"{row.farthest_from_tie:.2e} from a tie"
        )
    if asked.json is not None:
        AgreementReport(
            control=asked.control, origin=origin(), agreement=agreement, tensors=tuple(found)
        ).write(asked.json)


def agree(directory: Path, images: NDArray[Any], candidate: Network | None = None) -> Agreement:
    """Compare the engine's executor, or ``candidate``, with ONNX Runtime's execution of its graph on ``images``.

    Raises:
        EngineError: it is not an engine of the backend triton.
    """
    reference = reference_session(_with_zero_points(directory).SerializeToString(), optimize=False)
    executor = candidate or simulate(read_engine(directory))
    if executor is None:
        raise EngineError(f"{directory} is not an engine of the backend triton; pass one")
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    pairs = [(reference(part), executor(part)) for part in parts]
    expected, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
    error = np.abs(found - expected).max(axis=1)
    return Agreement(
        parted=tuple(
            _parted(int(index), expected[index], found[index])
            for index in np.flatnonzero(found.argmax(axis=1) != expected.argmax(axis=1))
        ),
        images=len(images),
        same_class=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        same_logits=float((error <= 1e-5 * np.abs(expected).max(axis=1)).mean()),
        relative_rms=float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())),
    )


def explain(model: onnx.ModelProto, images: NDArray[Any]) -> list[Difference]:
    """Compare every quantized tensor of float32 ``images``, computed from ONNX Runtime's inputs to it.

    ``model`` is the deployable graph.
    """
    network = lower(model, (images.shape[2], images.shape[3]))
    walk = StepExecutor(
        network.steps, {name: torch.tensor(values) for name, values in network.weights.items()}
    )
    names = [name for step in network.steps for name in writes(step)]
    with_zero_points = unfold_zero_points(model)
    tensors = integers(with_zero_points, names, images)
    unrounded = execute(with_zero_points, images, torch.float64, tensors).unrounded
    rows = []
    for step in network.steps:
        if isinstance(step, Head):
            continue
        with implementation("reference"):
            (found,) = walk.run(step, torch.from_numpy(images), tensors)
        expected = tensors[step.output]
        differ = found != expected
        v = unrounded[step.output]
        distance = float((v - v.floor() - 0.5).abs()[differ].max()) if bool(differ.any()) else 0.0
        steps = int((found.int() - expected.int()).abs().max())
        rows.append(
            Difference(
                tensor=step.output,
                values=found.numel(),
                differ=int(differ.sum()),
                largest_step=steps,
                farthest_from_tie=distance,
            )
        )
    return rows


def integers(model: onnx.ModelProto, names: list[str], images: NDArray[Any]) -> dict[str, Tensor]:
    """The quantized tensors as ONNX Runtime computes them."""
    outputs = [f"{name}.quantize" for name in names]
    found = reference_session(model.SerializeToString(), optimize=False, outputs=outputs).tensors(images)
    return {name: torch.from_numpy(found[f"{name}.quantize"]) for name in names}


def in_pytorch(model: onnx.ModelProto, dtype: torch.dtype, images: NDArray[Any]) -> NDArray[np.floating]:
    """Logits of ``images`` with Q/DQ executed in ``dtype`` by PyTorch."""
    return execute(model, images, dtype).logits.numpy()


def _with_zero_points(engine: Path) -> onnx.ModelProto:
    return unfold_zero_points(onnx.load(engine / GRAPH))


def _parted(index: int, expected: NDArray[Any], found: NDArray[Any]) -> Parted:
    was, became = int(expected.argmax()), int(found.argmax())
    rms = float(np.sqrt(np.square(found - expected).mean()))
    lead = float(expected[was] - expected[became])
    return Parted(index=index, expected=was, found=became, lead=lead, rms=rms)


def _images(manifest: Manifest, path: Path, limit: int) -> Iterator[NDArray[Any]]:
    steps = manifest.preprocess
    for batch in open_image_set(path, limit=limit).batches(steps, BATCH):
        taken = batch.images if manifest.inputs[0].dtype == "uint8" else normalize(batch.images, steps)
        yield taken


if __name__ == "__main__":
    main()

"""Whole engine directories of the small residual network."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.preprocess import CIFAR
from rescompile.backends import get_backend
from rescompile.backends.base import BuildRequest, Payload
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.files import atomic_write
from rescompile.manifest import FORMAT, Batch, CheckpointRef, Manifest, OutputSpec, Precision, TensorSpec
from rescompile.runtime.golden import golden_bytes
from tests.backends.graphs import CLASSES, IMAGE_SHAPE, SIDE, residual_net, sample_images, saved

RANGE = Batch(1, 4, 8)
PREPROCESS = msgspec.structs.replace(CIFAR, resize=None, crop=SIDE)


def request(
    model: Path, precision: Precision, batch: Batch = RANGE, target: str | None = None
) -> BuildRequest:
    return BuildRequest(model=model, precision=precision, batch=batch, image_shape=IMAGE_SHAPE, target=target)


def build(
    directory: Path, precision: Precision, *, backend: str = "openvino", batch: Batch = RANGE
) -> Payload:
    """Build the network's payload and ``model.onnx`` into ``directory``."""
    path = saved(residual_net(precision), directory)
    return get_backend(backend).build(request(path, precision, batch), directory)


def manifest(precision: Precision, backend: str, batch: Batch = RANGE) -> Manifest:
    """A manifest without files."""
    size = batch.min if batch.min == batch.max else -1
    return Manifest(
        format=FORMAT,
        model="residual",
        depth=None,
        precision=precision,
        backend=backend,
        target=None,
        batch=batch,
        inputs=(TensorSpec("images", (size, *IMAGE_SHAPE), "float32", "NCHW"),),
        outputs=(
            OutputSpec(
                "logits",
                (size, CLASSES),
                "float32",
                "NC",
                labels=tuple(f"class {index}" for index in range(CLASSES)),
            ),
        ),
        preprocess=PREPROCESS,
        checkpoint=CheckpointRef("0" * 64, "random"),
        calibration=None,
        golden_relative_rms=1e-2,
        files={},
        environment={},
    )


def make_engine(
    directory: Path, precision: Precision = "fp32", *, backend: str = "openvino", batch: Batch = RANGE
) -> Manifest:
    """A complete engine in ``directory``, which is made."""
    directory.mkdir(parents=True)
    build(directory, precision, backend=backend, batch=batch)
    images = sample_images(4)
    logits = reference_session(directory / "model.onnx", optimize=False)(images)
    atomic_write(directory / "golden.npz", golden_bytes(images, logits))
    return write_hashed_manifest(directory, manifest(precision, backend, batch))


def taking_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with input uint8 [N, 16, 16, 3], scaled to [-1, 1] and transposed inside."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    steps = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalized"]),
    ]
    for node in graph.node:
        node.input[:] = ["normalized" if name == "images" else name for name in node.input]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*steps, *graph.node)]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3]))
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 64, np.float32), "factor"))
    graph.initializer.append(numpy_helper.from_array(np.array(-2, np.float32), "offset"))
    return made

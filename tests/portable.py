"""Results that must be the same on every machine, as one JSON object: run by the tests in processes of other settings.

``python -m tests.portable`` prints it. ``python -m tests.portable write`` makes the table and the facts in ``data/``
anew, which is needed only when a field is added to calibration tables.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.images import open_image_set
from calibration.preprocess import CIFAR, normalize
from calibration.statistics.collect import collect
from calibration.table import CalibrationTable, make_table, read_table
from rescompile.graph.export import export
from rescompile.graph.fold import fold
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import quantized_tensors
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find

TABLE = Path(__file__).parent / "data/resnet8.calibration.json"
FACTS = TABLE.with_name("resnet8.facts.json")


@cache
def network() -> tuple[onnx.ModelProto, str]:
    """The folded graph of a ResNet-8 with seeded weights, and their SHA-256."""
    model, sha256 = random_model(find(depth=None, name="resnet8-cifar"), 10, seed=4)
    return fold(export(model, image_size=32)), sha256


def digest(graph: onnx.ModelProto) -> str:
    """SHA-256 over nodes and constants; what a library writes of its own version does not count."""
    found = hashlib.sha256()
    for node in graph.graph.node:
        attributes = sorted(f"{a.name}={onnx.helper.get_attribute_value(a)}" for a in node.attribute)
        found.update(
            repr((node.op_type, node.name, list(node.input), list(node.output), attributes)).encode()
        )
    for constant in sorted(graph.graph.initializer, key=lambda tensor: tensor.name):
        array = numpy_helper.to_array(constant)
        found.update(f"{constant.name} {array.dtype} {array.shape}\n".encode())
        found.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


def bits(table: CalibrationTable) -> dict[str, str]:
    """The float32 bits of every scale, in hexadecimal digits."""
    return {name: struct.pack(">f", scale).hex() for name, scale in table.scales().items()}


def facts() -> dict[str, Any]:
    """Everything that follows from the committed table."""
    graph, checkpoint = network()
    table = read_table(TABLE)
    methods = next(iter(table.tensors.values())).thresholds
    return {
        "checkpoint": checkpoint,
        "scales": {method: bits(table.with_method(method)) for method in methods},
        "graph": digest(quantize(graph, table.scales())),
        "table": _written_again(table),
    }


def _written_again(table: CalibrationTable) -> bool:
    """Whether writing ``table`` gives the committed file, byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        table.write(Path(folder) / "again.json")
        return (Path(folder) / "again.json").read_bytes() == TABLE.read_bytes()


def calibrated() -> CalibrationTable:
    """A table of the network from seeded images; its thresholds depend on the processor's sums in the last digits."""
    graph, checkpoint = network()
    coarse = np.random.default_rng(4).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "images.npz", images=coarse.repeat(4, axis=1).repeat(4, axis=2))
        images = open_image_set(Path(folder) / "images.npz")
        batches = (normalize(batch.images, CIFAR) for batch in images.batches(CIFAR, 4))
        histograms = collect(graph, quantized_tensors(graph), batches)
        return make_table(
            histograms,
            "mse",
            model="resnet8-cifar",
            checkpoint_sha256=checkpoint,
            images=images,
            preprocess=CIFAR,
        )


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        calibrated().write(TABLE)
        FACTS.write_text(json.dumps(facts(), indent=1) + "\n")
    print(json.dumps(facts()))

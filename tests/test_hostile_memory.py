"""Small files that would fill the memory: each is refused, and what it takes until then is bounded by its size.

Every case is a process of its own. It may take 8 times the file and 200 MB more than it had before.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from tests.sources import test_keras_file

ALLOWED_TIMES, ALLOWED_MORE = 8, 200_000_000

READ = """
import os, sys
from pathlib import Path

import numpy, torch
from calibration.images.files import decode
from calibration.images.image_set import open_image_set
from calibration.mean_image import read_mean
from calibration.preprocess import CIFAR
from rescompile.errors import USER_ERRORS
from rescompile.runtime.npz import read_arrays
from rescompile.sources.checkpoint import checkpoint_of, read_weights
from rescompile.sources.framework_files import read_framework_file
from rescompile.sources.onnx_file import read_onnx

READERS = {
    "checkpoint": lambda path: checkpoint_of(read_weights(path)),
    "framework": lambda path: read_framework_file(path, (8, 8)),
    "image": lambda path: decode(path, CIFAR),
    "archive": lambda path: [decoder(CIFAR) for decoder in open_image_set(path).images.decoders()],
    "mean": read_mean,
    "onnx": read_onnx,
    "golden": lambda path: read_arrays(path.read_bytes(), ["images", "logits"]),
}

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024

for case in sys.argv[1:]:
    kind, _, path = case.partition("=")
    if os.fork():  # each in a process of its own, without importing everything again
        os.wait()
        continue
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    try:
        READERS[kind](Path(path))
        said = "read"
    except (*USER_ERRORS, ValueError) as error:
        said = "refused: " + str(error).splitlines()[0]
    print(memory("VmHWM") - before, said, flush=True)
    os._exit(0)
"""


def saved(path: Path, payload: Any, **options: Any) -> None:
    torch.save(payload, path, **options)


def repeated_values(path: Path) -> None:
    saved(path, {f"layer{index}.weight": torch.zeros(1).expand(1 << 28) for index in range(20)})


def repeated_values_old_form(path: Path) -> None:
    payload = {f"layer{index}.weight": torch.zeros(1).expand(1 << 28) for index in range(20)}
    saved(path, payload, _use_new_zipfile_serialization=False)


def packed_records(path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(75 << 20)}, stream)
    with (
        zipfile.ZipFile(stream) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))


def list_of_lists(path: Path) -> None:
    """Ten levels of a hundred references each: a few hundred bytes, 10^20 objects for a reader that copies."""
    value: Any = ["x"]
    for _ in range(10):
        value = [value] * 100
    saved(path, {"history": value, "path": Path("a"), "weight": torch.zeros(3)})


def numbered_objects(path: Path) -> None:
    """An object with the number 2^30: the unpickler of C would make a table of as many."""
    data = b"\x80\x02}X\x01\x00\x00\x00aK\x01sr" + struct.pack("<I", 1 << 30) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cpathlib\nPosixPath\n0" + data[2:])
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def paddle_array(path: Path) -> None:
    class Huge:
        def __reduce__(self) -> Any:
            return np.ndarray, ((1 << 32,), "<f4", b"\0\0\0\0", 0, (0,))

    path.write_bytes(pickle.dumps({"conv1.weight": Huge()}, 2))


def flat_picture(path: Path) -> None:
    Image.new("RGB", (11_000, 11_000)).save(path, compress_level=1)


def flat_transparent_picture(path: Path) -> None:
    Image.new("LA", (8_000, 8_000)).save(path, compress_level=1)


def flat_tiff(path: Path) -> None:
    Image.new("1", (11_000, 11_000)).save(path, compression="group4")


def member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str, zeros: int) -> None:
    """An array of ``shape`` in an archive, of whose data ``zeros`` bytes are there."""
    header: Any = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        stream.write(header.getvalue())
        for _ in range(zeros >> 20):
            stream.write(bytes(1 << 20))


def one_large_image(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        member(archive, "images", (1, 10_000, 10_000, 3), "|u1", 300 << 20)


def many_small_images(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        member(archive, "images", (100 << 20, 1, 1, 1), "|u1", 100 << 20)
        member(archive, "labels", (100 << 20,), "<i8", 100 << 20)


def packed_mean(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        member(archive, "mean", (3, 5_000, 5_000), "<f4", 300 << 20)


def packed_golden(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        member(archive, "images", (4, 3, 5_000, 5_000), "<f4", 300 << 20)


def graph(path: Path, *nodes: onnx.NodeProto, **constants: np.ndarray[Any, Any]) -> None:
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())


def large_constant(path: Path) -> None:
    nodes = (
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceMean", ["zeros"], ["mean"], keepdims=0),
        helper.make_node("Add", ["x", "mean"], ["y"]),
    )
    graph(path, *nodes, shape=np.array([1 << 17, 1 << 17], np.int64))


def endless_loop(path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["s"], ["t"])], "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, None),
        ],
    )  # fmt: skip
    node = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=inner)
    graph(path, node, trips=np.array(1 << 62, np.int64))


def claimed_constant(path: Path) -> None:
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "big"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    sparse = made.sparse_initializer.add()
    sparse.dims[:] = [1 << 34]
    sparse.values.CopyFrom(helper.make_tensor("big", TensorProto.FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [5]))
    path.write_bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def many_parts(path: Path, key: bytes, part: bytes) -> None:
    """A protobuf file of 1.5 million parts without contents."""
    body = part * 1_500_000
    length, rest = b"", len(body)
    while key and rest:
        length, rest = length + bytes([rest & 127 | 128 * (rest > 127)]), rest >> 7
    path.write_bytes(key + length + body)


def packed_keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("config.json", "[" + " " * (300 << 20))


def packed_keras_weights(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(test_keras_file.MODEL)
        own = file.create_group("model_weights/conv")
        own.attrs["weight_names"] = ["w"]
        own.create_dataset(
            "w", shape=(75 << 20,), dtype="f4", chunks=(25 << 20,), compression="gzip", fillvalue=1
        )
        for part in range(3):
            own["w"][part * (25 << 20) : (part + 1) * (25 << 20)] = 0


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{" + b" " * 1000)


CASES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "one value repeated": (repeated_values, "checkpoint", ".pth"),
    "one value repeated, old form": (repeated_values_old_form, "checkpoint", ".pth"),
    "packed records": (packed_records, "checkpoint", ".pth"),
    "lists of lists": (list_of_lists, "checkpoint", ".pth"),
    "an object numbered 2^30": (numbered_objects, "checkpoint", ".pth"),
    "an array of Paddle without data": (paddle_array, "checkpoint", ".pdparams"),
    "a header of safetensors without end": (long_header, "checkpoint", ".safetensors"),
    "a picture of one colour": (flat_picture, "image", ".png"),
    "a transparent picture": (flat_transparent_picture, "image", ".png"),
    "a picture of one bit": (flat_tiff, "image", ".tif"),
    "an archive of one large image": (one_large_image, "archive", ".npz"),
    "an archive of many small images": (many_small_images, "archive", ".npz"),
    "a packed mean image": (packed_mean, "mean", ".npz"),
    "packed golden images": (packed_golden, "golden", ".npz"),
    "a constant made by the graph": (large_constant, "onnx", ".onnx"),
    "a loop without end": (endless_loop, "onnx", ".onnx"),
    "a graph of empty nodes": (lambda path: many_parts(path, b"\x3a", b"\x0a\x00"), "onnx", ".onnx"),
    "a Caffe file of empty layers": (
        lambda path: many_parts(path, b"", b"\xa2\x06\x00"),
        "framework",
        ".caffemodel",
    ),
    "a packed Keras archive": (packed_keras, "framework", ".keras"),
    "packed weights of Keras": (packed_keras_weights, "framework", ".h5"),
    "a sparse constant": (claimed_constant, "onnx", ".onnx"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The hostile files by case."""
    folder = tmp_path_factory.mktemp("hostile")
    made = {}
    for number, (name, (make, _, suffix)) in enumerate(CASES.items()):
        made[name] = folder / f"{number}{suffix}"
        make(made[name])
    return made


@pytest.fixture(scope="module")
def answers(files: dict[str, Path]) -> dict[str, str]:
    """The bytes that reading each file took, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *(f"{CASES[name][1]}={path}" for name, path in files.items())],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return dict(zip(files, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_small_file_takes_little_memory_and_is_refused(
    name: str, files: dict[str, Path], answers: dict[str, str]
) -> None:
    size = files[name].stat().st_size
    taken, said = answers[name].split(" ", 1)
    assert said.startswith("refused:"), said
    assert int(taken) <= ALLOWED_TIMES * size + ALLOWED_MORE, f"{int(taken):,} bytes for {size:,}: {said}"
    print(f"{name}: {size:,} bytes, peak {int(taken):,}: {said}")

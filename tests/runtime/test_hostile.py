"""A hostile directory is an error in one sentence, and never a traceback; the cases are those of the C++ library."""

from __future__ import annotations

import gc
import io
import json
import shutil
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rescompile
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.errors import RescompileError
from rescompile.manifest import Batch, read_manifest
from rescompile.runtime.npz import read_arrays
from tests.backends.engines import make_engine
from tests.cpp.hostile import CASES, Case, changed, shape

PYTHON = {
    "another backend": "needs a CUDA GPU|is not installed|cannot run here|does not list model.engine",
    "no network listed": r"does not list model\.xml, so the engine cannot be loaded",
    "absurd least batch": "a smallest batch of 2,147,483,647 images, which cannot fit into memory",
    "absurd largest batch": r"model\.xml does not fit the manifest",
    "batch the wrong way round": "batch sizes 4:2:1, which are not min <= opt <= max",
    "absurd image": "an impossible input size",
    "no classes": "and kind classes, with 0 names",
    "golden doubles": "an array is neither float32 nor uint8",
    "golden pickle": "an array is neither float32 nor uint8",
    "golden shape": r"golden\.npz does not fit the manifest",
    "compressed golden": "it is compressed",
    "parent folder": "outside of its directory; do not use this engine",
    "linked payload": r"model\.bin is not a regular file \(perhaps a symbolic link",
    "swapped payload": r"model\.bin was changed after the build",
    "another format": "has format 3, this rescompile reads formats 1 to 2",
    "other golden answers": "does not reproduce its golden answers",
}
"""The messages of Python where they differ from C++; all others are only known to be one sentence."""
MORE = {
    "other classes": Case(
        changed(lambda fields: fields["outputs"][0].update(shape=[-1, 3], labels=list("abc"))), 2, ""
    ),
    "large image and batch": Case(shape(-1, 3, 10_000, 10_000), 2, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small engine of the files that a library needs."""
    folder = tmp_path_factory.mktemp("good") / "engine"
    make_engine(folder, "int8", backend="openvino", batch=Batch(1, 1, 4))
    (folder / "model.onnx").unlink()
    write_hashed_manifest(folder, read_manifest(folder))
    return folder


@pytest.mark.usefixtures("young_garbage")
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_python_refuses_in_one_sentence(good: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(good, folder)
    (CASES | MORE)[name].spoil(folder)
    with pytest.raises(RescompileError, match=PYTHON.get(name)) as refused:
        rescompile.load(folder).close()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 6000
    del refused
    gc.collect()  # an archive that was left open would warn, and a warning is an error


def test_the_good_one_is_good(good: Path) -> None:
    rescompile.load(good).close()


def npz(content: bytes, name: str = "images.npy", compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin-1")
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


SHAPED = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "something else than NumPy arrays"),
        (b"\x93NUMPX" + bytes(20), "something else than NumPy arrays"),
        (npy(SHAPED % "(2,)", bytes(4)), "an array was cut"),
        (npy(SHAPED % "(2,)", bytes(12)), "an array was cut"),
        (npy(SHAPED % f"({2**62}, {2**62})", bytes(4)), "an array was cut"),
        (npy(SHAPED % "(-1,)", bytes(4)), "header of an array is damaged"),
        (npy(SHAPED % "(True,)", bytes(4)), "header of an array is damaged"),
        (npy(SHAPED % "[1]", bytes(4)), "header of an array is damaged"),
        (npy(SHAPED % f"({'1, ' * 40})", bytes(4)), "header of an array is damaged"),
        (npy((SHAPED % "(1,)").replace("False", "True"), bytes(4)), "header of an array is damaged"),
        (npy((SHAPED % "(1,)").replace("<f4", "|O"), bytes(4)), "neither float32 nor uint8"),
        (npy((SHAPED % "(1,)").replace("'<f4'", "[]"), bytes(4)), "neither float32 nor uint8"),
        (npy("(" * 900), "header of an array is damaged"),
        (npy("[1, 2]"), "header of an array is damaged"),
        (npy("{'descr': " + " " * 2000), "header of an array is damaged"),
        (npy("import os\0"), "header of an array is damaged"),
    ],
)
def test_arrays_that_are_none_are_refused(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_arrays(npz(content), ["images"])


def test_archives_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"it has no images\.npy"):
        read_arrays(npz(b"", name="other.npy"), ["images"])
    with pytest.raises(ValueError, match="it is compressed"):
        read_arrays(npz(bytes(1000), compression=zipfile.ZIP_DEFLATED), ["images"])


def test_an_archive_too_large_to_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rescompile.runtime.npz._MOST_BYTES", 10)
    with pytest.raises(ValueError, match="it has more than 10 bytes"):
        read_arrays(bytes(11), ["images"])


@pytest.mark.parametrize("version", [b"\1\0", b"\2\0"])
def test_what_numpy_writes_is_read(version: bytes) -> None:
    stream: Any = io.BytesIO()
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # older NumPy cannot read version 2; this is a test of ours
        np.lib.format.write_array(stream, expected, version=tuple(version))
    (found,) = read_arrays(npz(stream.getvalue()), ["images"])
    np.testing.assert_array_equal(found, expected)


def test_an_engine_without_a_payload_in_its_manifest_is_refused_whatever_its_backend(
    good: Path, tmp_path: Path
) -> None:
    for backend, name in (
        ("tensorrt", "model.engine"),
        ("triton", "plan.json"),
        ("onnxruntime", "model.onnx"),
    ):
        folder = tmp_path / backend
        shutil.copytree(good, folder)
        changed(lambda fields, backend=backend: fields.update(backend=backend))(folder)
        assert json.loads((folder / "manifest.json").read_bytes())["backend"] == backend
        with pytest.raises(RescompileError, match=f"does not list {name}, so the engine cannot be loaded"):
            rescompile.load(folder)

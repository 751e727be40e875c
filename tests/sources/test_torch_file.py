from __future__ import annotations

import argparse
import collections
import datetime
import functools
import gzip
import lzma
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rescompile.errors import CheckpointError
from rescompile.sources.inert_pickle import stand_ins
from rescompile.sources.torch_file import read_payload

TENSORS = {"a": torch.arange(60.0).reshape(3, 20), "b": torch.ones(2, dtype=torch.float16)}


class Marker:
    """Touches a file when it is unpickled by a careless reader."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_both_forms_of_torch_save(save, zipped):
    payload = read_payload(save(TENSORS, _use_new_zipfile_serialization=zipped))
    assert torch.equal(payload["a"], TENSORS["a"])


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_reads_safetensors_by_content(tmp_path, name):
    save_file(TENSORS, tmp_path / name)
    assert torch.equal(read_payload(tmp_path / name)["a"], TENSORS["a"])


def test_tensors_saved_on_a_gpu_come_to_the_cpu(save, tmp_path):
    """The location of each storage is a string in the pickle; here it is rewritten to the first GPU."""
    moved = tmp_path / "cuda.pth"
    with zipfile.ZipFile(save(TENSORS)) as source, zipfile.ZipFile(moved, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(name, data)
    assert read_payload(moved)["a"].device.type == "cpu"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_beside_the_weights_is_not_run(save, tmp_path, zipped):
    payload = {"state_dict": TENSORS, "extra": Marker(tmp_path / "touched")}
    found = read_payload(save(payload, _use_new_zipfile_serialization=zipped))
    assert torch.equal(found["state_dict"]["a"], TENSORS["a"])
    assert list(stand_ins(found)) == ["posix.system"]
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_in_a_plain_pickle_is_not_run(tmp_path, protocol):
    path = write(tmp_path / "x.pth", pickle.dumps(Marker(tmp_path / "touched"), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"text file, not a checkpoint|safe loader refuses"):
        read_payload(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_side_objects_of_training_programs_do_no_harm(save, zipped):
    extras = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(93.2),
        "epoch": np.int64(3),
        "weights": np.ones(10),
        "optimizer": functools.partial(print, 1),
        "folder": Path("data"),
        "when": datetime.datetime(2024, 1, 1),
        "meters": collections.defaultdict(list, {"a": [1]}),
        "loss": torch.nn.CrossEntropyLoss(),
        "model": torch.nn.Linear(2, 2),
    }
    payload = read_payload(save({"state_dict": TENSORS, **extras}, _use_new_zipfile_serialization=zipped))
    assert torch.equal(payload["state_dict"]["a"], TENSORS["a"])
    assert "torch.nn.modules.linear.Linear" in list(stand_ins(payload))


def test_a_file_of_python_2_is_read(save, tmp_path):
    """Its NumPy scores are raw bytes in a byte string, which is not UTF-8."""
    path = save({"state_dict": TENSORS, "mark": "raw"}, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    assert raw.count(b"X\x03\x00\x00\x00raw") == 1
    found = read_payload(
        write(tmp_path / "py2.pth", raw.replace(b"X\x03\x00\x00\x00raw", b"U\x03\xff\xfe\x80"))
    )
    assert torch.equal(found["state_dict"]["a"], TENSORS["a"])


def test_missing_directory_pipe_and_empty(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist: check the path"):
        read_payload(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a directory, not a checkpoint"):
        read_payload(tmp_path)
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\)"):
        read_payload(write(tmp_path / "empty.pth", b""))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_payload(tmp_path / "empty.pth" / "inside.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\)"):
        read_payload(tmp_path / ("x" * 5000))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        read_payload(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.pth", b"hello\nthere", r"is a text file, not a checkpoint \(it begins with 'hello'\)"),
        ("x.pth", b'{"a": 1}', "is a text file"),
        ("x.safetensors", b"<!DOCTYPE html>", "not a safetensors file"),
        ("x.pth", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        ("x.pth.xz", lzma.compress(b"abc"), "compressed: unpack it first with 'xz -d'"),
        ("x.pth.gz", gzip.compress(b"abc", mtime=0), "compressed: unpack it first with 'gunzip'"),
        ("x.onnx", b"\x08\x07\x12\x00", "is an ONNX graph.*--onnx"),
        ("x.pth", b"\x00\x01\x02\x03" * 9, "neither a torch.save file .* nor safetensors"),
        ("x.pth", b"PK\x03", "damaged or incomplete"),
        ("x.pth", b"\x80", "damaged"),
        ("x.safetensors", b"\x01", "not a safetensors file"),
        ("x.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "damaged or incomplete"),
        ("x.safetensors", struct.pack("<Q", 9) + b'{"a": 12}', "damaged or incomplete"),
    ],
)
def test_files_that_are_no_checkpoints_are_called_what_they_are(tmp_path, name, data, words):
    with pytest.raises(CheckpointError, match=words):
        read_payload(write(tmp_path / name, data))


def test_other_archives_are_told_apart(tmp_path, save):
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(CheckpointError, match=r"zip archive that torch\.save did not write"):
        read_payload(tmp_path / "photos.pth")
    with zipfile.ZipFile(save(TENSORS), "a") as archive:
        archive.writestr("weights/constants.pkl", b"")
    with pytest.raises(CheckpointError, match=r"is a TorchScript program.*state_dict\(\)"):
        read_payload(tmp_path / "weights.pth")


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_damaged(save, tmp_path, form, kept):
    path = tmp_path / f"x.{form}"
    if form == "safetensors":
        save_file(TENSORS, path)
    else:
        save(TENSORS, path.name, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    with pytest.raises(CheckpointError, match="damaged"):
        read_payload(write(path, whole[: max(2, int(len(whole) * kept))]))


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("intact")
    torch.save(TENSORS, folder / "zip")
    torch.save(TENSORS, folder / "legacy", _use_new_zipfile_serialization=False)
    save_file(TENSORS, folder / "safetensors")
    return folder, [(folder / name).read_bytes() for name in ("zip", "legacy", "safetensors")]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_changed_byte_is_read_or_refused_but_never_a_traceback(intact, data):
    folder, files = intact
    content = bytearray(data.draw(st.sampled_from(files)))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CheckpointError):
        read_payload(write(folder / "changed", bytes(content)))

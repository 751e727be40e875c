"""Reading a file with any content succeeds or ends in one sentence.

Good files of each kind are changed: bits, cuts, repetitions, numbers that claim more than there is. A short run is part
of every test run. For ten minutes for each kind:

    RESCOMPILE_FUZZ_SECONDS=600 pytest tests/test_parser_fuzz.py
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save as save_safetensors

from calibration.images.files import decode
from calibration.images.image_set import open_image_set
from calibration.mean_image import read_mean
from calibration.preprocess import CIFAR
from calibration.table import read_table
from rescompile.errors import USER_ERRORS
from rescompile.runtime.npz import read_arrays
from rescompile.sources.onnx_file import read_onnx
from rescompile.sources.torch_file import read_payload

SECONDS = float(os.environ.get("RESCOMPILE_FUZZ_SECONDS", "0"))
EXAMPLES = 10**7 if SECONDS else 60
INTERESTING = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    struct.pack("<Q", 1 << 40),
    b"PK\3\4",
    b"{",
]


def torch_file(**options: Any) -> bytes:
    stream = io.BytesIO()
    payload = {"state_dict": {"conv1.weight": torch.ones(2, 3, 1, 1), "fc.bias": torch.zeros(2)}, "epoch": 3}
    torch.save(payload, stream, **options)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((40, 40), 50).convert("RGB").save(stream, kind)
    return stream.getvalue()


def graph() -> bytes:
    made = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 8, 8])],
        [onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")],
    )  # fmt: skip
    serialized: bytes = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 17)]
    ).SerializeToString()
    return serialized


def read_images(path: Path) -> None:
    images = open_image_set(path)
    for decoder in images.images.decoders():
        decoder(CIFAR)


IMAGES = np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3)
KINDS: dict[str, tuple[Callable[[], bytes], str, Callable[[Path], object]]] = {
    "torch": (torch_file, ".pth", read_payload),
    "torch, old form": (lambda: torch_file(_use_new_zipfile_serialization=False), ".pth", read_payload),
    "safetensors": (lambda: save_safetensors({"a": torch.ones(3, 4)}), ".safetensors", read_payload),
    "paddle": (lambda: pickle.dumps({"a.weight": np.ones((2, 3), np.float32)}, 2), ".pdparams", read_payload),
    "images": (lambda: npz(images=IMAGES, labels=np.arange(4)), ".npz", read_images),
    "golden": (
        lambda: npz(images=IMAGES, logits=np.ones((4, 10), np.float32)),
        ".npz",
        lambda path: read_arrays(path.read_bytes(), ["images", "logits"]),
    ),
    "mean": (lambda: npy(np.full((3, 4, 4), 120.0)), ".npy", read_mean),
    "onnx": (graph, ".onnx", read_onnx),
    "table": (lambda: b'{"format": 1, "tensors": {"a": {"amax": 1.0}}, "sha256": ""}', ".json", read_table),
    **{kind: (lambda kind=kind: picture(kind), f".{kind.lower()}", lambda path: decode(path, CIFAR))  # type: ignore[misc]
       for kind in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")},
}  # fmt: skip
SENTENCES = (*USER_ERRORS, ValueError)
"""``read_arrays`` says what is wrong with a ValueError, which its caller puts into a sentence."""


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, float, int, bytes]]:
    """Up to four changes: what is done, where (as a share of the file), with which number and bytes."""
    actions = st.sampled_from(["flip", "put", "cut", "drop", "repeat"])
    place, number = st.floats(0, 1, exclude_max=True), st.integers(0, 7)
    return draw(
        st.lists(st.tuples(actions, place, number, st.sampled_from(INTERESTING)), min_size=1, max_size=4)
    )


def changed(data: bytes, what: list[tuple[str, float, int, bytes]]) -> bytes:
    for action, share, number, put in what:
        place = int(share * len(data))
        if action == "flip" and data:
            data = data[:place] + bytes([data[place] ^ 1 << number]) + data[place + 1 :]
        elif action == "put":
            data = data[:place] + put + data[place + len(put) :]
        elif action == "cut":
            data = data[:place]
        elif action == "drop":
            data = data[:place] + data[place + number + 1 :]
        else:
            data = data[:place] + data[place : place + 8 * (number + 1)] + data[place:]
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_or_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    make, suffix, read = KINDS[kind]
    good, path, end = make(), tmp_path / f"x{suffix}", time.monotonic() + SECONDS

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changes())
    def attempt(what: list[tuple[str, float, int, bytes]]) -> None:
        if SECONDS and time.monotonic() > end:
            return
        path.write_bytes(changed(good, what))
        # a warning would reach the user without a sentence
        with warnings.catch_warnings(), contextlib.suppress(*SENTENCES):
            warnings.simplefilter("error")
            read(path)

    path.write_bytes(good)
    if kind != "table":
        read(path)
    attempt()

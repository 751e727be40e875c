"""A file whose structure is JSON or protobuf, with other values in it, is read or refused in one sentence.

Bytes that change at random rarely get past the first check of such a file; here every field may hold anything. More of
them: RESCOMPILE_FUZZ=10000 pytest tests/sources/test_changed_structures.py
"""

from __future__ import annotations

import json
import os
import warnings
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from rescompile.errors import USER_ERRORS
from rescompile.sources.caffe_file import read_caffe
from rescompile.sources.class_names import read_names
from rescompile.sources.keras_file import read_keras
from rescompile.sources.mxnet_file import read_mxnet
from tests.sources import test_caffe_file, test_keras_file, test_mxnet_file

EXAMPLES = int(os.environ.get("RESCOMPILE_FUZZ", "150"))
NUMBERS = [0, 1, 2, 3, 5, 7, 1 << 20, (1 << 31) - 1]
VALUES: list[Any] = [
    *NUMBERS, -1, 0.5, 1e300, float("nan"), True, None, "", "same", "valid", "relu", "x" * 300, "a\nb", "\ud800",
    [], [1, 1], [0, 0], [-1, 2],
    [[1, 0], 2], {}, {"a": 1}, [[["conv", 0, 0]]], "(2, 2)", "(0, 0)", "(-1, 1)", "True", "avg", "9" * 5000,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of a document, as the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


def at(document: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        document = document[key]
    return document


def with_others(document: Any, rng: Random) -> Any:
    """``document`` with up to three fields changed, exchanged for another field's value, or left out."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        found = places(document)
        if not found:
            break
        *way, last = rng.choice(found)
        owner, action = at(document, tuple(way)), rng.randrange(4)
        if action == 0:
            del owner[last]
        elif action == 1:
            owner[last] = json.loads(json.dumps(at(document, rng.choice(found))))
        else:
            owner[last] = deepcopy(rng.choice(VALUES))
    return document


def keras(folder: Path, rng: Random) -> object:
    return read_keras(test_keras_file.write_h5(folder / "x.h5", with_others(test_keras_file.MODEL, rng)))


def keras_3(folder: Path, rng: Random) -> object:
    model = with_others(test_keras_file.MODEL3, rng)
    return read_keras(test_keras_file.write_keras(folder / "x.keras", model))


def mxnet(folder: Path, rng: Random) -> object:
    path, symbol = test_mxnet_file.write(folder), folder / "net-symbol.json"
    symbol.write_text(json.dumps(with_others(json.loads(symbol.read_text()), rng)))
    return read_mxnet(path, (8, 8))


def class_names(folder: Path, rng: Random) -> object:
    forms = [{"0": "a", "1": "b"}, {"a": 0, "b": 1}, [["n1", "a"], ["n2", "b"]], ["a", "b"]]
    (folder / "x.json").write_text(json.dumps(with_others(rng.choice(forms), rng)))
    return read_names(folder / "x.json")


def caffe(folder: Path, rng: Random) -> object:
    net = test_caffe_file.Network()
    net.add("Convolution", np.ones((4, 3, 3, 3)), convolution_param={"kernel_size": [3], "pad": [1]})
    net.add("BatchNorm", np.ones(4), np.ones(4), np.ones(1))
    net.add("Scale", np.ones(4), np.ones(4))
    net.add("Pooling", pooling_param={"kernel_size": [2], "stride": [2]})
    net.add("InnerProduct", np.ones((5, 64)))
    message = test_caffe_file.net_parameter()()
    message.ParseFromString(net.write(folder / "x.caffemodel").read_bytes())
    for _ in range(rng.randint(1, 3)):
        change_message(message, rng)
    (folder / "x.caffemodel").write_bytes(message.SerializeToString())
    return read_caffe(folder / "x.caffemodel")


def change_message(message: Any, rng: Random) -> None:
    """Another value in a field of ``message``, or of a message in it."""
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.randrange(3) else list(message.DESCRIPTOR.fields))
    value = getattr(message, field.name)
    inner = [value] if not field.is_repeated else list(value)
    if field.message_type is not None and inner and rng.randrange(4):
        change_message(rng.choice(inner), rng)
    elif field.message_type is not None or rng.randrange(3) == 0:
        message.ClearField(field.name)
    else:
        found: Any = rng.choice(NUMBERS[:4] if field.cpp_type == field.CPPTYPE_ENUM else NUMBERS)
        if field.cpp_type == field.CPPTYPE_STRING:
            found = rng.choice(["", "data", "Eltwise", "Concat", "Convolution1", "x" * 300])
        found = found.encode() if field.type == field.TYPE_BYTES else found
        if field.is_repeated:
            value.append(found)
        else:
            setattr(message, field.name, bool(found) if field.cpp_type == field.CPPTYPE_BOOL else found)


KINDS = {"keras": keras, "keras 3": keras_3, "mxnet": mxnet, "caffe": caffe, "class names": class_names}


@pytest.mark.parametrize("kind", KINDS)
def test_another_structure_is_read_or_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    said, broken = set(), []
    for seed in range(EXAMPLES):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                KINDS[kind](tmp_path, Random(seed))
            except USER_ERRORS as error:
                said.add(str(error))
            except Exception as error:
                broken.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    assert not broken
    assert said
    assert not [words for words in said if "\n" in words or len(words) > 1000]

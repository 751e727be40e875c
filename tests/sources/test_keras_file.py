from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rescompile.errors import BackendUnavailable, CheckpointError
from rescompile.sources.framework_files import read_framework_file
from rescompile.sources.keras_file import read_keras
from tests.sources.zoo import run

h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)
SIZE = 7


def random(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


CONV, BIAS = random(3, 3, 3, 4) / 3, random(4)
SHORT = random(1, 1, 3, 4)
NORM = [random(4), random(4), random(4), np.abs(random(4)) + 0.5]
DENSE, OFFSET = random(64, 5) / 8, random(5)
WEIGHTS = {"conv": [CONV, BIAS], "norm": NORM, "short": [SHORT], "head": [DENSE, OFFSET]}


def layer(kind: str, name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    nodes = [[[x, 0, 0, {}] for x in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def conv(name: str, x: str, size: int, *, bias: bool) -> dict[str, Any]:
    return layer(
        "Conv2D",
        name,
        x,
        kernel_size=[size, size],
        strides=[2, 2],
        padding="same",
        use_bias=bias,
        activation="linear",
    )


LAYERS = [
    layer("InputLayer", "image", batch_input_shape=[None, SIZE, SIZE + 1, 3]),
    layer("Rescaling", "scaled", "image", scale=1 / 127.5, offset=-1.0),
    conv("conv", "scaled", 3, bias=True),
    layer("BatchNormalization", "norm", "conv", axis=[3], epsilon=0.001, center=True, scale=True),
    conv("short", "scaled", 1, bias=False),
    layer("Add", "sum", "norm", "short"),
    layer("ReLU", "relu", "sum", max_value=6.0),
    layer("Flatten", "flat", "relu"),
    layer("Dropout", "dropped", "flat", rate=0.5),
    layer("Dense", "head", "dropped", units=5, use_bias=True, activation="softmax"),
]
MODEL = {
    "class_name": "Functional",
    "config": {"name": "tiny", "layers": LAYERS, "output_layers": [["head", 0, 0]]},
}


def expected(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same in torch, channels last where Keras has them."""
    x = torch.from_numpy(images)
    # 7 rows: 1 above and 1 below; 8 columns: the odd one to the right
    y = F.conv2d(
        F.pad(x, (0, 1, 1, 1)), torch.from_numpy(CONV.transpose(3, 2, 0, 1)), torch.from_numpy(BIAS), 2
    )
    gamma, beta, mean, variance = map(torch.from_numpy, NORM)
    y = F.batch_norm(y, mean, variance, gamma, beta, eps=1e-3)
    y = (y + F.conv2d(x, torch.from_numpy(SHORT.transpose(3, 2, 0, 1)), stride=2)).clamp(0, 6)
    flat = y.permute(0, 2, 3, 1).flatten(1)
    return (flat @ torch.from_numpy(DENSE) + torch.from_numpy(OFFSET)).softmax(1).numpy()


def write_h5(path: Path, model: dict[str, Any] = MODEL) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model)
        group = file.create_group("model_weights")
        for name, arrays in WEIGHTS.items():
            own = group.create_group(name)
            names = [f"{name}/w{number}:0" for number in range(len(arrays))]
            own.attrs["weight_names"] = [entry.encode() for entry in names]
            for entry, array in zip(names, arrays, strict=True):
                own.create_dataset(entry, data=array)
    return path


def keras3_history(entry: dict[str, Any]) -> dict[str, Any]:
    """``entry`` with its inputs as Keras 3 writes them."""
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"keras_history": node[:3]}}
        for call in entry["inbound_nodes"]
        for node in call
    ]
    arguments = [tensors] if len(tensors) > 1 else tensors
    return {**entry, "inbound_nodes": [{"args": arguments, "kwargs": {}}] if tensors else []}


MODEL3 = {
    **MODEL,
    "config": {**MODEL["config"], "layers": [keras3_history(entry) for entry in LAYERS]},  # type: ignore[dict-item]
}


def write_keras(path: Path, model: dict[str, Any] | None = None) -> Path:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        # Keras 3 numbers the layers of a class: 'short' is the second convolution
        for group, name in {
            "conv2d": "conv",
            "batch_normalization": "norm",
            "conv2d_1": "short",
            "dense": "head",
        }.items():
            for number, array in enumerate(WEIGHTS[name]):
                file.create_dataset(f"layers/{group}/vars/{number}", data=array)
    model = model or MODEL3
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


@pytest.mark.parametrize("write", [write_h5, write_keras])
def test_network_is_keras_own(tmp_path: Path, write: Any) -> None:
    network = read_keras(write(tmp_path / "tiny.file"))
    images = random(3, 3, SIZE, SIZE + 1)
    assert network.name == "tiny"
    np.testing.assert_allclose(run(network, images), expected(images), rtol=1e-4, atol=1e-6)


def test_first_rescaling_becomes_the_preprocessing(tmp_path: Path) -> None:
    network = read_keras(write_h5(tmp_path / "tiny.h5"))
    assert network.preprocess is not None
    assert network.preprocess.mean == network.preprocess.std == (0.5, 0.5, 0.5)
    assert network.preprocess.resize == (SIZE, SIZE + 1)
    assert network.preprocess_from == "the first layer of the Keras model"


def test_nested_model_finds_its_weights(tmp_path: Path) -> None:
    inner = {"name": "body", "layers": LAYERS[:-1], "output_layers": [["dropped", 0, 0]]}
    outer = {
        "class_name": "Sequential",
        "config": {
            "name": "outer",
            "layers": [
                layer("InputLayer", "in", batch_shape=[None, SIZE, SIZE + 1, 3]),
                {"class_name": "Functional", "config": inner},
                {**LAYERS[-1], "inbound_nodes": []},
            ],
        },
    }
    path = tmp_path / "nested.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(outer)
        body, names = file.create_group("model_weights/body"), []
        for name in ("conv", "norm", "short"):
            for number, array in enumerate(WEIGHTS[name]):
                names.append(f"{name}/w{number}:0")
                body.create_dataset(names[-1], data=array)
        body.attrs["weight_names"] = names
        head = file.create_group("model_weights/head")
        for number, array in enumerate(WEIGHTS["head"]):
            head.create_dataset(f"head/w{number}:0", data=array)
        head.attrs["weight_names"] = ["head/w0:0", "head/w1:0"]
    images = random(2, 3, SIZE, SIZE + 1)
    np.testing.assert_allclose(run(read_keras(path), images), expected(images), rtol=1e-4, atol=1e-6)


def changed(kind: str, name: str, **config: Any) -> dict[str, Any]:
    """The model with another last layer."""
    last = layer(kind, name, "dropped", **config)
    return {**MODEL, "config": {"layers": [*LAYERS[:-1], last], "output_layers": [[name, 0, 0]]}}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (changed("LSTM", "memory"), r"does not know, 'memory' \(LSTM\).*tf2onnx"),
        (changed("Dense", "absent", activation="linear"), "'absent' .* 0 arrays of weights"),
        (changed("Activation", "odd", activation="gelu_fast"), "'odd' .* its activation is gelu_fast"),
        (changed("Dense", "short", activation="linear"), "'short' .*cannot be read"),
        ({"class_name": "MyModel", "config": {}}, "neither a Sequential nor a Functional"),
        ({"class_name": "Functional", "config": {"layers": LAYERS[1:]}}, "not a network of one image"),
    ],
)
def test_model_that_cannot_be_read_is_refused_in_one_sentence(
    tmp_path: Path, model: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_keras(write_h5(tmp_path / "model.h5", model))


def test_size_of_open_input_is_the_users(tmp_path: Path) -> None:
    layers = [layer("InputLayer", "image", batch_input_shape=[None, None, None, 3]), *LAYERS[1:]]
    path = write_h5(tmp_path / "open.h5", {**MODEL, "config": {**MODEL["config"], "layers": layers}})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="--crop"):
        read_keras(path)
    images = random(1, 3, SIZE, SIZE + 1)
    found = run(read_keras(path, (SIZE, SIZE + 1)), images)
    np.testing.assert_allclose(found, expected(images), rtol=1e-4, atol=1e-6)


def test_weights_of_absurd_size_are_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(MODEL)
        own = file.create_group("model_weights/conv")
        own.attrs["weight_names"] = ["huge"]
        own.create_dataset("huge", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))
    with pytest.raises(CheckpointError, match="'huge' are float32"):
        read_keras(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "tiny.h5")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(CheckpointError, match="damaged"):
        read_keras(path)
    archive = tmp_path / "tiny.keras"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("weights.bin", b"")
    with pytest.raises(CheckpointError, match=r"without Keras's config\.json"):
        read_keras(archive)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(BackendUnavailable, match=r"pip install '.*\[keras\]'"):
        read_keras(tmp_path / "model.h5")


def test_weights_alone_say_that_their_structure_is_assumed(real_data: Path) -> None:
    for name, said in (("resnet8.keras", False), ("resnet8.weights.h5", True)):
        network = read_framework_file(real_data / "zoo/keras" / name)
        assert network is not None
        assert bool(network.notes) == said


def test_sigmoid_network_opens(real_data: Path) -> None:
    answer = run(read_keras(real_data / "zoo/keras/resnet20-binary.h5"), random(2, 3, 32, 32))
    assert answer.shape == (2, 1)
    assert ((answer >= 0) & (answer <= 1)).all()

"""MXNet has no release for this Python, so the files are written here by its published format."""

from __future__ import annotations

import json
import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rescompile.errors import CheckpointError
from rescompile.sources.checkpoint import read_weights
from rescompile.sources.framework_files import read_framework_file
from rescompile.sources.mxnet_file import read_params
from tests.sources.zoo import run

RNG = np.random.default_rng(0)


def random(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "arg:conv_weight": random(4, 3, 3, 3),
    "arg:bn_gamma": random(4),
    "arg:bn_beta": random(4),
    "aux:bn_moving_mean": random(4),
    "aux:bn_moving_var": np.abs(random(4)) + 0.5,
    "arg:fc_weight": random(5, 4),
    "arg:fc_bias": random(5),
}
NODES: list[tuple[str, str, dict[str, str], list[int]]] = [
    ("null", "data", {}, []),
    ("null", "conv_weight", {}, []),
    (
        "Convolution",
        "conv",
        {"kernel": "(3, 3)", "pad": "(1, 1)", "stride": "(2, 2)", "no_bias": "True"},
        [0, 1],
    ),
    ("null", "bn_gamma", {}, []),
    ("null", "bn_beta", {}, []),
    ("null", "bn_moving_mean", {}, []),
    ("null", "bn_moving_var", {}, []),
    ("BatchNorm", "bn", {"eps": "2e-05", "fix_gamma": "False"}, [2, 3, 4, 5, 6]),
    ("Activation", "relu", {"act_type": "relu"}, [7]),
    ("elemwise_add", "sum", {}, [8, 7]),
    ("Pooling", "pool", {"global_pool": "True", "kernel": "(4, 4)", "pool_type": "avg"}, [9]),
    ("Flatten", "flat", {}, [10]),
    ("null", "fc_weight", {}, []),
    ("null", "fc_bias", {}, []),
    ("FullyConnected", "fc", {"num_hidden": "5"}, [11, 12, 13]),
    ("null", "softmax_label", {}, []),
    ("SoftmaxOutput", "softmax", {}, [14, 15]),
]


def params(
    version: int = 2, count: int | None = None, weights: dict[str, NDArray[np.float32]] = WEIGHTS
) -> bytes:
    """A .params file of NDArray's second or first version, or as the oldest releases wrote it."""
    out = struct.pack("<QQQ", 0x112, 0, len(weights) if count is None else count)
    for array in weights.values():
        if version == 2:
            out += struct.pack("<Ii", 0xF993FAC9, 0)
        elif version == 1:
            out += struct.pack("<I", 0xF993FAC8)
        out += struct.pack("<I", array.ndim) + struct.pack(
            f"<{array.ndim}{'q' if version else 'I'}", *array.shape
        )
        out += struct.pack("<iii", 1, 0, 0) + array.astype("<f4").tobytes()
    out += struct.pack("<Q", len(weights))
    for name in weights:
        out += struct.pack("<Q", len(name)) + name.encode()
    return out


def write(folder: Path, nodes: list[Any] = NODES, data: bytes | None = None) -> Path:
    symbol = {
        "nodes": [
            {"op": op, "name": name, "attrs": attrs, "inputs": [[source, 0, 0] for source in inputs]}
            for op, name, attrs, inputs in nodes
        ],
        "heads": [[len(nodes) - 1, 0, 0]],
    }
    (folder / "net-symbol.json").write_text(json.dumps(symbol))
    path = folder / "net-0010.params"
    path.write_bytes(params() if data is None else data)
    return path


def expected(x: NDArray[np.float32], *, gamma: bool = True) -> NDArray[np.float32]:
    w = {name.split(":")[1]: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    y = F.conv2d(torch.from_numpy(x), w["conv_weight"], stride=2, padding=1)
    scale = w["bn_gamma"] if gamma else None
    y = F.batch_norm(y, w["bn_moving_mean"], w["bn_moving_var"], scale, w["bn_beta"], eps=2e-5)
    pooled = (y.relu() + y).mean((2, 3))
    return F.linear(pooled, w["fc_weight"], w["fc_bias"]).softmax(1).numpy()


def test_network_is_mxnets(tmp_path: Path) -> None:
    network = read_framework_file(write(tmp_path), (8, 8))
    assert network is not None
    x = random(2, 3, 8, 8)
    np.testing.assert_allclose(run(network, x), expected(x), rtol=1e-4, atol=1e-5)
    assert network.name == "net"


def test_fixed_gamma_is_one(tmp_path: Path) -> None:
    nodes = [
        (op, name, {"eps": "2e-05"} if op == "BatchNorm" else attrs, ins) for op, name, attrs, ins in NODES
    ]
    network = read_framework_file(write(tmp_path, nodes), (8, 8))
    assert network is not None
    x = random(2, 3, 8, 8)
    np.testing.assert_allclose(run(network, x), expected(x, gamma=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_of_arrays_is_read(version: int) -> None:
    found = read_params(params(version))
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found[name.split(":")[1]], array)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (params()[:200], "damaged"),
        (b"PK\x03\x04" * 20, "damaged"),
        (params(count=1 << 60), "ends too early"),
        (params().replace(struct.pack("<q", 4), struct.pack("<q", 1 << 50)), "ends too early"),
    ],
)
def test_damaged_arrays_are_refused_without_allocation(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_framework_file(write(tmp_path, data=data), (8, 8))


def test_missing_symbol_and_unknown_operation_and_size_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, [*NODES, ("Deconvolution", "up", {}, [14])])
    with pytest.raises(CheckpointError, match=r"does not know, 'up' \(Deconvolution\)"):
        read_framework_file(path, (8, 8))
    with pytest.raises(CheckpointError, match="--crop"):
        read_framework_file(path)
    (tmp_path / "net-symbol.json").unlink()
    with pytest.raises(CheckpointError, match=r"net-symbol\.json"):
        read_framework_file(path, (8, 8))


KERNEL, BIAS = random(4, 3, 1, 1), random(4)
POOL = {"kernel": "(3, 3)", "stride": "(2, 2)"}
MEANS = {**POOL, "pool_type": "avg", "pad": "(1, 1)"}
NORM = {"gamma": random(4), "beta": random(4), "mean": random(4), "var": np.abs(random(4)) + 1}


def one_layer(folder: Path, op: str, attrs: dict[str, str], conv: dict[str, str] | None = None) -> Path:
    """A convolution with bias, and one operation behind it."""
    nodes: list[Any] = [
        ("null", "data", {}, []), ("null", "w", {}, []), ("null", "b", {}, []),
        ("Convolution", "conv", {"kernel": "(1, 1)", **(conv or {})}, [0, 1, 2]),
    ]  # fmt: skip
    weights = {"arg:w": KERNEL, "arg:b": BIAS}
    inputs = [3, 3] if op in ("Concat", "broadcast_mul") else [3]
    if op == "BatchNorm":
        inputs += range(4, 8)
        nodes += [("null", name, {}, []) for name in NORM]
        weights |= {f"aux:{name}": values for name, values in NORM.items()}
    return write(folder, [*nodes, (op, "it", attrs, inputs)], params(weights=weights))


@pytest.mark.parametrize(
    ("op", "attrs", "expected"),
    [
        ("Activation", {"act_type": "sigmoid"}, torch.sigmoid),
        ("LeakyReLU", {"slope": "0.1"}, lambda x: F.leaky_relu(x, 0.1)),
        ("relu", {}, F.relu),
        ("softmax", {}, lambda x: x.softmax(1)),
        ("Concat", {}, lambda x: torch.cat([x, x], 1)),
        ("broadcast_mul", {}, lambda x: x * x),
        ("Dropout", {}, lambda x: x),
        ("Pooling", {**POOL, "pad": "(1, 1)"}, lambda x: F.max_pool2d(x, 3, 2, 1)),
        ("Pooling", {**POOL, "pooling_convention": "full"}, lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)),
        ("Pooling", MEANS, lambda x: F.avg_pool2d(x, 3, 2, 1)),
        ("Pooling", {**MEANS, "count_include_pad": "False"}, lambda x: F.avg_pool2d(x, 3, 2, 1, False, False)),
    ],
)  # fmt: skip
def test_an_operation_answers_as_mxnet_says(
    tmp_path: Path, op: str, attrs: dict[str, str], expected: Any
) -> None:
    network = read_framework_file(one_layer(tmp_path, op, attrs), (8, 8))
    assert network is not None
    x = random(2, 3, 8, 8)
    y = F.conv2d(torch.from_numpy(x), torch.from_numpy(KERNEL), torch.from_numpy(BIAS))
    np.testing.assert_allclose(run(network, x), expected(y).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attrs", "conv", "said"),
    [
        ("relu", {}, {"layout": "NHWC"}, "its layout is NHWC"),
        ("BatchNorm", {"axis": "3"}, {}, "its axis is 3"),
        ("Pooling", {"pool_type": "sum"}, {}, "it pools by sum"),
        ("Pooling", {**POOL, "pooling_convention": "same"}, {}, "its convention is same"),
        ("Pooling", {**POOL, "pool_type": "avg", "pooling_convention": "full"}, {}, "hang over the image"),
        ("Pooling", {"stride": "(0, 0)", "pooling_convention": "full"}, {}, "cannot be read"),
        ("LeakyReLU", {"act_type": "prelu"}, {}, "its kind is prelu"),
        ("Concat", {"dim": "2"}, {}, "it joins axis 2"),
        ("elemwise_add", {}, {}, "it joins 1 inputs"),
    ],
)
def test_a_form_that_is_not_known_is_refused(
    tmp_path: Path, op: str, attrs: dict[str, str], conv: dict[str, str], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_framework_file(one_layer(tmp_path, op, attrs, conv), (8, 8))


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ({"nodes": [7], "heads": []}, "not written as MXNet writes them"),
        ({"nodes": [], "heads": []}, "has no convolution"),
        ({"nodes": [{"op": "Convolution", "name": "c", "inputs": []}], "heads": []}, "has no convolution"),
    ],
)
def test_a_symbol_that_is_not_one_is_refused(tmp_path: Path, symbol: Any, said: str) -> None:
    path = write(tmp_path)
    (tmp_path / "net-symbol.json").write_text(json.dumps(symbol))
    with pytest.raises(CheckpointError, match=said):
        read_framework_file(path, (8, 8))


def test_a_symbol_without_outputs_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    symbol = json.loads((tmp_path / "net-symbol.json").read_text())
    (tmp_path / "net-symbol.json").write_text(json.dumps({**symbol, "heads": [[99, 0, 0]]}))
    with pytest.raises(CheckpointError, match="has no output"):
        read_framework_file(path, (8, 8))


HEADER = struct.pack("<QQQ", 0x112, 0, 1)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (struct.pack("<Ii", 0xF993FAC9, 1), "sparse"),
        (struct.pack("<II", 0xF993FAC8, 9), "of 9 axes"),
        (struct.pack("<IIqiii", 0xF993FAC8, 1, 1, 1, 0, 7), "of type 7"),
        (struct.pack("<IIqiiif", 0xF993FAC8, 1, 1, 1, 0, 0, float("nan")), "NaN or infinite"),
        (
            struct.pack("<IIqiiif", 0xF993FAC8, 1, 1, 1, 0, 0, 1.0) + struct.pack("<Q", 0),
            "1 arrays and 0 names",
        ),
    ],
)
def test_arrays_of_other_kinds_are_refused(tmp_path: Path, array: bytes, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_framework_file(write(tmp_path, data=HEADER + array + bytes(8)), (8, 8))


class Symbol:
    """A network that is written layer by layer."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state, self.nodes = state, list[tuple[str, str, dict[str, str], list[int]]]()
        self.weights: dict[str, NDArray[np.float32]] = {}

    def add(self, op: str, name: str, attrs: dict[str, str], *inputs: int) -> int:
        self.nodes.append((op, name, attrs, list(inputs)))
        return len(self.nodes) - 1

    def weight(self, kind: str, name: str, tensor: torch.Tensor) -> int:
        self.weights[f"{kind}:{name}"] = tensor.numpy()
        return self.add("null", name, {})

    def conv(self, name: str, norm: str, x: int, *, stride: int, relu: bool = True) -> int:
        weight = self.state[f"{name}.weight"]
        kernel = weight.shape[2]
        attrs = {
            "kernel": f"({kernel}, {kernel})", "pad": f"({kernel // 2}, {kernel // 2})", "no_bias": "True",
            "stride": f"({stride}, {stride})", "num_filter": str(len(weight)),
        }  # fmt: skip
        y = self.add("Convolution", name, attrs, x, self.weight("arg", f"{name}_weight", weight))
        roles = [
            self.weight(kind, f"{norm}_{theirs}", self.state[f"{norm}.{ours}"])
            for kind, theirs, ours in (
                ("arg", "gamma", "weight"), ("arg", "beta", "bias"),
                ("aux", "moving_mean", "running_mean"), ("aux", "moving_var", "running_var"),
            )
        ]  # fmt: skip
        y = self.add("BatchNorm", norm, {"eps": "1e-05", "fix_gamma": "False"}, y, *roles)
        return self.add("Activation", f"{name}_relu", {"act_type": "relu"}, y) if relu else y


def test_real_weights_in_mxnets_format_reach_their_accuracy(real_data: Path, tmp_path: Path) -> None:
    """A CIFAR ResNet-20 that was trained in PyTorch, written by hand as MXNet writes files."""
    net = Symbol(read_weights(real_data / "zoo/torch/resnet20-distiller.pth.tar").state_dict)
    x = net.conv("conv1", "bn1", net.add("null", "data", {}), stride=1)
    for stage, block in product((1, 2, 3), range(3)):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        y = net.conv(f"{name}.conv1", f"{name}.bn1", x, stride=stride)
        y = net.conv(f"{name}.conv2", f"{name}.bn2", y, stride=1, relu=False)
        if f"{name}.downsample.0.weight" in net.state:
            x = net.conv(f"{name}.downsample.0", f"{name}.downsample.1", x, stride=stride, relu=False)
        x = net.add("elemwise_add", f"{name}.add", {}, y, x)
        x = net.add("Activation", f"{name}.relu", {"act_type": "relu"}, x)
    x = net.add("Pooling", "pool", {"global_pool": "True", "kernel": "(8, 8)", "pool_type": "avg"}, x)
    x = net.add("Flatten", "flat", {}, x)
    head = [net.weight("arg", f"fc_{role}", net.state[f"fc.{role}"]) for role in ("weight", "bias")]
    net.add("FullyConnected", "fc", {"num_hidden": "10"}, x, *head)
    network = read_framework_file(write(tmp_path, net.nodes, params(weights=net.weights)), (32, 32))
    assert network is not None
    with np.load(real_data / "cifar10/test.npz") as test:
        images, labels = test["images"][:500].astype(np.float32) / 127.5 - 1, test["labels"][:500]
    right = run(network, images.transpose(0, 3, 1, 2)).argmax(1) == labels
    assert right.mean() == pytest.approx(0.919, abs=0.02)

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rescompile.errors import CheckpointError
from rescompile.sources.caffe_file import read_caffe
from rescompile.sources.caffe_schema import net_parameter
from rescompile.sources.framework_files import read_framework_file
from tests.sources.zoo import run

RNG = np.random.default_rng(0)


def random(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


class Network:
    """A .caffemodel, written layer by layer."""

    def __init__(self) -> None:
        self.message = net_parameter()(name="tiny")
        self.last = "data"

    def add(self, kind: str, *blobs: NDArray[Any], bottom: tuple[str, ...] = (), **parameters: Any) -> Any:
        name = f"{kind}{len(self.message.layer)}"
        layer = self.message.layer.add(name=name, type=kind, bottom=bottom or (self.last,), top=[name])
        for values in blobs:
            blob = layer.blobs.add()
            blob.data.extend(values.ravel().tolist())
            blob.shape.dim.extend(values.shape)
        for field, values in parameters.items():
            for key, value in values.items():
                target = getattr(layer, field)
                if isinstance(value, list):
                    getattr(target, key).extend(value)
                else:
                    setattr(target, key, value)
        self.last = name
        return layer

    def write(self, path: Path, channels: int = 3) -> Path:
        data = self.message.layer.add(name="data", type="Input", top=["data"])
        data.input_param.shape.add().dim.extend([1, channels, 8, 8])
        layers = [self.message.layer[-1], *self.message.layer[:-1]]
        ordered = net_parameter()(name="tiny", layer=layers)
        path.write_bytes(ordered.SerializeToString())
        return path


def test_batch_norm_and_scale_are_one_node(tmp_path: Path) -> None:
    weight, bias = random(4, 3, 3, 3), random(4)
    mean, variance, gamma, beta = random(4), np.abs(random(4)) + 1, random(4), random(4)
    net = Network()
    net.add("Convolution", weight, bias, convolution_param={"kernel_size": [3], "pad": [1], "stride": [2]})
    # Caffe stores sums, and their number in the third blob
    net.add("BatchNorm", mean * 9, variance * 9, np.array([9.0]))
    net.add("Scale", gamma, beta)
    net.add("ReLU")
    network = read_caffe(net.write(tmp_path / "tiny.caffemodel"))
    x = random(2, 3, 8, 8)
    y = F.conv2d(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias), stride=2, padding=1)
    parts = [torch.from_numpy(part) for part in (mean, variance, gamma, beta)]
    np.testing.assert_allclose(
        run(network, x), F.batch_norm(y, *parts, eps=1e-5).relu().numpy(), rtol=1e-4, atol=1e-5
    )
    assert [node.op_type for node in network.graph.graph.node] == ["Conv", "BatchNormalization", "Relu"]


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 0), (2, 2, 0), (3, 2, 1), (2, 3, 1), (3, 3, 1)])
@pytest.mark.parametrize("average", [False, True])
def test_poolings_round_up_as_caffe_does(
    tmp_path: Path, kernel: int, stride: int, pad: int, average: bool
) -> None:
    net = Network()
    net.add(
        "Convolution", np.eye(3, dtype=np.float32)[:, :, None, None], convolution_param={"kernel_size": [1]}
    )
    parameters = {"pool": int(average), "kernel_size": [kernel], "stride": [stride], "pad": [pad]}
    net.add("Pooling", pooling_param=parameters)
    x = random(1, 3, 8, 8)
    found = run(read_caffe(net.write(tmp_path / "pool.caffemodel")), x)
    np.testing.assert_allclose(found, caffes_pooling(x, kernel, stride, pad, average), rtol=1e-5, atol=1e-6)


def caffes_pooling(x: NDArray[Any], kernel: int, stride: int, pad: int, average: bool) -> NDArray[Any]:
    """Caffe's pooling_layer.cpp in NumPy, window by window."""
    side = x.shape[2]
    out = -(-(side + 2 * pad - kernel) // stride) + 1
    if pad and (out - 1) * stride >= side + pad:
        out -= 1
    found = np.zeros((*x.shape[:2], out, out), np.float32)
    for row in range(out):
        for column in range(out):
            starts = [index * stride - pad for index in (row, column)]
            ends = [min(start + kernel, side + pad) for start in starts]
            area = (ends[0] - starts[0]) * (ends[1] - starts[1])
            (top, left), (bottom, right) = (
                [max(start, 0) for start in starts],
                [min(end, side) for end in ends],
            )
            window = x[:, :, top:bottom, left:right]
            found[:, :, row, column] = window.sum((2, 3)) / area if average else window.max((2, 3))
    return found


def test_branches_are_read_and_loss_is_left_out(tmp_path: Path) -> None:
    weight, dense = random(3, 3, 1, 1), random(5, 192)
    net = Network()
    net.add("Convolution", weight, convolution_param={"kernel_size": [1]})
    net.add("Eltwise", bottom=("data", net.last))
    net.add("InnerProduct", dense)
    net.add("SoftmaxWithLoss", bottom=(net.last, "label"))
    x = random(2, 3, 8, 8)
    y = x + np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)
    np.testing.assert_allclose(
        run(read_caffe(net.write(tmp_path / "net.caffemodel")), x),
        y.reshape(2, -1) @ dense.T,
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("kind", "blobs", "parameters", "said"),
    [
        ("LRN", (), {}, r"does not know, 'LRN1' \(LRN\)"),
        ("Eltwise", (), {"eltwise_param": {"coeff": [1.0, -1.0]}}, "its coefficients are"),
        ("BatchNorm", (random(4), random(4)), {}, "'BatchNorm1' .*cannot be read"),
        ("InnerProduct", (random(5, 7),), {}, "do not fit an input"),
        ("Pooling", (), {"pooling_param": {"kernel_size": [99]}}, "does not fit into"),
    ],
)
def test_layers_that_cannot_be_read_are_refused(
    tmp_path: Path, kind: str, blobs: tuple[Any, ...], parameters: Any, said: str
) -> None:
    net = Network()
    net.add("Convolution", random(4, 3, 1, 1), convolution_param={"kernel_size": [1]})
    net.add(kind, *blobs, **parameters)
    with pytest.raises(CheckpointError, match=said):
        read_caffe(net.write(tmp_path / "net.caffemodel"))


def image(net: Network, kind: str, *blobs: NDArray[Any], **parameters: Any) -> None:
    """A convolution that changes nothing, without which a file is not a network, and one layer behind it."""
    net.add("Convolution", np.eye(3)[:, :, None, None], convolution_param={"kernel_size": [1]})
    net.add(kind, *blobs, **parameters)


SCALE, SHIFT, MEAN, VARIANCE = random(3), random(3), random(3), np.abs(random(3)) + 1


WINDOWS = {"kernel_h": 3, "kernel_w": 2, "stride_h": 1, "stride_w": 2, "round_mode": 1}


def by_channel(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))[:, None, None]


DEVIATION = by_channel(np.sqrt(VARIANCE + 1e-5))


@pytest.mark.parametrize(
    ("kind", "blobs", "parameters", "expected"),
    [
        ("Scale", (SCALE,), {}, lambda x: x * by_channel(SCALE)),
        ("Scale", (SCALE, SHIFT), {"scale_param": {"axis": -3}}, lambda x: x * by_channel(SCALE) + by_channel(SHIFT)),
        ("BatchNorm", (MEAN, VARIANCE, np.ones(1)), {}, lambda x: (x - by_channel(MEAN)) / DEVIATION),
        ("BatchNorm", (MEAN, VARIANCE, np.zeros(1)), {}, lambda x: x / 1e-5**0.5),
        ("ReLU", (), {"relu_param": {"negative_slope": 0.25}}, lambda x: F.leaky_relu(x, 0.25)),
        ("Power", (), {"power_param": {"scale": 2.0, "shift": 1.0}}, lambda x: 2 * x + 1),
        ("Softmax", (), {}, lambda x: x.softmax(1)),
        ("Sigmoid", (), {}, torch.sigmoid),
        ("TanH", (), {}, torch.tanh),
        ("Dropout", (), {}, lambda x: x),
        ("Flatten", (), {}, lambda x: x.flatten(1)),
        ("Pooling", (), {"pooling_param": {"pool": 1, "global_pooling": True}}, lambda x: x.mean((2, 3), keepdim=True)),
        ("Pooling", (), {"pooling_param": WINDOWS}, lambda x: F.max_pool2d(x, (3, 2), (1, 2))),
    ],
)  # fmt: skip
def test_a_layer_answers_as_caffe_says(
    tmp_path: Path, kind: str, blobs: tuple[Any, ...], parameters: Any, expected: Any
) -> None:
    net, x = Network(), random(2, 3, 8, 8)
    image(net, kind, *blobs, **parameters)
    found = run(read_caffe(net.write(tmp_path / "net.caffemodel")), x)
    np.testing.assert_allclose(found, expected(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)


def test_a_transposed_classifier_and_joined_channels_are_read(tmp_path: Path) -> None:
    net, x, dense, bias = Network(), random(2, 3, 8, 8), random(6, 5), random(5)
    net.add("Convolution", np.eye(3)[:, :, None, None], convolution_param={"kernel_size": [1]})
    net.add("Concat", bottom=(net.last, "data"))
    net.add("Pooling", pooling_param={"pool": 0, "global_pooling": True})
    net.add("Flatten")
    net.add("InnerProduct", dense, bias, inner_product_param={"transpose": True})
    net.add("Accuracy", bottom=(net.last, "label"))
    found = run(read_caffe(net.write(tmp_path / "net.caffemodel")), x)
    largest = np.concatenate([x, x], 1).max((2, 3))
    np.testing.assert_allclose(found, largest @ dense + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "blobs", "parameters", "said"),
    [
        ("Scale", (SCALE,), {"scale_param": {"axis": 2}}, "its axis is 2"),
        ("Scale", (SCALE * np.nan,), {}, "NaN or infinite"),
        ("Power", (), {"power_param": {"power": 2.0}}, "its power is 2"),
        ("Concat", (), {"concat_param": {"axis": 2}}, "another axis than the channels"),
        ("Pooling", (), {"pooling_param": {"pool": 2, "kernel_size": [2]}}, "it pools at random"),
        ("Pooling", (), {"pooling_param": {"kernel_size": [2], "stride": [0]}}, "cannot be read"),
        ("InnerProduct", (random(5, 192),), {"inner_product_param": {"axis": 2}}, "its axis is 2"),
        ("Convolution", (random(4, 3, 3, 3),), {"convolution_param": {"kernel_size": [5]}}, "and its kernel"),
        ("Eltwise", (), {}, "it joins 1 inputs"),
    ],
)
def test_a_form_that_is_not_known_is_refused(
    tmp_path: Path, kind: str, blobs: tuple[Any, ...], parameters: Any, said: str
) -> None:
    net = Network()
    image(net, kind, *blobs, **parameters)
    with pytest.raises(CheckpointError, match=said):
        read_caffe(net.write(tmp_path / "net.caffemodel"))


def without_input(path: Path, **data: Any) -> Path:
    """A network whose data layer gives no shape, but has the ``data`` of training."""
    net = Network()
    net.message.layer.add(name="data", type="Data", top=["data"])
    for name, value in data.items():
        target = net.message.layer[0].transform_param
        getattr(target, name).extend(value) if isinstance(value, list) else setattr(target, name, value)
    net.add("Convolution", random(4, 3, 3, 3), convolution_param={"kernel_size": [3]})
    path.write_bytes(net.message.SerializeToString())
    return path


def test_a_size_that_the_file_leaves_open_is_the_users(tmp_path: Path) -> None:
    path = without_input(tmp_path / "net.caffemodel", crop_size=227, mean_value=[104.0], scale=0.5)
    with pytest.raises(CheckpointError, match="training cropped them to 227 pixels"):
        read_caffe(path)
    network = read_caffe(path, (16, 12))
    assert [dim.dim_value for dim in network.graph.graph.input[0].type.tensor_type.shape.dim][1:] == [
        3,
        16,
        12,
    ]
    assert network.notes == (
        "the data layer of the file subtracts 104 from pixels of 0 to 255 and multiplies pixels by 0.5",
    )
    with pytest.raises(CheckpointError, match="check --crop"):
        read_caffe(path, (16, 1 << 20))


def test_the_size_in_the_oldest_form_is_read(tmp_path: Path) -> None:
    net = Network()
    net.add("Convolution", random(4, 3, 3, 3), convolution_param={"kernel_size": [3]})
    net.message.input.append("data")
    net.message.input_dim.extend([1, 3, 9, 7])
    (tmp_path / "net.caffemodel").write_bytes(net.message.SerializeToString())
    assert run(read_caffe(tmp_path / "net.caffemodel"), random(1, 3, 9, 7)).shape == (1, 4, 7, 5)


def test_two_layers_of_one_name_and_files_without_weights_are_refused(tmp_path: Path) -> None:
    net = Network()
    image(net, "ReLU")
    net.message.layer[1].name = net.message.layer[0].name
    with pytest.raises(CheckpointError, match="does not describe a network"):
        read_caffe(net.write(tmp_path / "net.caffemodel"))
    (tmp_path / "net.caffemodel").write_bytes(net_parameter()(name="x").SerializeToString())
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_caffe(tmp_path / "net.caffemodel")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_caffe(tmp_path / "none.caffemodel")


def test_damaged_and_old_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(b"\xff" * 50)
    with pytest.raises(CheckpointError, match="damaged"):
        read_caffe(path)
    path.write_bytes(net_parameter()(layers=[b""]).SerializeToString())
    with pytest.raises(CheckpointError, match="upgrade_net_proto_binary"):
        read_caffe(path)


def test_real_files_need_a_size_and_say_where_the_mean_comes_from(real_data: Path) -> None:
    path = real_data / "zoo/caffe/resnet20.caffemodel"
    with pytest.raises(CheckpointError, match="--crop"):
        read_framework_file(path)
    network = read_framework_file(path, (32, 32))
    assert network is not None
    assert "--mean" in network.notes[0]

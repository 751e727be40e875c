from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of
from rescompile.sources.framework_files import read_framework_file

PADDLE = {".running_mean": "._mean", ".running_var": "._variance"}


def test_weights_make_the_network_that_they_came_from(tmp_path: Path) -> None:
    model, _ = random_model(find(depth=None, name="resnet20-cifar"), 10, 0)
    payload: dict[str, object] = {"StructuredToParameterName@@": {"conv1.weight": "conv2d_0.w_0"}}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        end = next((end for end in PADDLE if name.endswith(end)), "")
        array = tensor.numpy()
        payload[name.removesuffix(end) + PADDLE.get(end, "")] = array.T if array.ndim == 2 else array
    path = tmp_path / "net.pdparams"
    path.write_bytes(pickle.dumps(payload, protocol=2))
    checkpoint = load_checkpoint(path)
    found = build_model(spec_of(checkpoint), checkpoint)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(found(images), model.eval()(images))


def test_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pdparams"
    path.write_bytes(pickle.dumps({"conv1.weight": Path("x")}))
    with pytest.raises(CheckpointError, match=r"it needs pathlib"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"x": np.ones(2)})[:-5])
    with pytest.raises(CheckpointError, match="cannot be read as Paddle's weights"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match="holds a list"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("x.t7", "torchfile"), ("x.pdmodel", "paddle2onnx"), ("x.prototxt", "caffemodel"), ("x.pb", "tf2onnx")],
)
def test_files_that_have_to_be_converted_name_the_way(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=said):
        read_framework_file(tmp_path / name)


def test_saved_model_names_the_way(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"tf2onnx\.convert --saved-model"):
        read_framework_file(tmp_path)


def test_untrained_file_opens(real_data: Path) -> None:
    assert (
        spec_of(load_checkpoint(real_data / "zoo/paddle/resnet20-untrained.pdparams")).name
        == "resnet20-cifar"
    )

"""``--qat``: the trained network is the deployable graph, integer by integer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rescompile
from calibration.network import Node
from calibration.preprocess import normalize
from rescompile.errors import UsageError
from rescompile.sources.trained import read_trained
from rescompile.training import quantization_aware
from rescompile.training.fake_quantized import FakeQuantized
from rescompile.training.recipe import find_recipe
from rescompile.training.train import TrainConfig, train


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def trained(folder: Path, images: Path, model: str, *changes: str) -> Path:
    recipe = find_recipe("digits", ["steps=24", "batch_size=16", "learning_rate=0.02", *changes])
    train(TrainConfig(data=str(images), output=folder, recipe=recipe, model=model))
    return folder / "best.safetensors"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    labels = np.arange(96) % 4
    pixels = draw.integers(0, 120, (96, 8, 8, 3)) + (40 * labels)[:, None, None, None]
    path = tmp_path_factory.mktemp("images") / "train.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def small_weights(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained resnet8-cifar, read-only."""
    return trained(tmp_path_factory.mktemp("fp32"), images, "resnet8-cifar")


def fine_tuned(
    weights: Path,
    images: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    latest: bool = True,
    **options: object,
) -> FakeQuantized:
    """The network in the state of ``best.safetensors``, which is the last one with ``latest``."""
    kept: list[tuple[FakeQuantized, dict[str, torch.Tensor]]] = []
    original = quantization_aware.QuantizedKeeper.keep

    def keep(self: object, network: FakeQuantized, record: object, *, best: bool) -> None:
        best = best or latest
        original(self, network, record, best=best)  # type: ignore[arg-type]
        if best:
            kept.append((network, {name: tensor.clone() for name, tensor in network.state_dict().items()}))

    monkeypatch.setattr(quantization_aware.QuantizedKeeper, "keep", keep)
    changes = ["steps=12", "batch_size=16", "learning_rate=0.003", "augmentation=none"]
    recipe = find_recipe("qat", changes)
    train(
        TrainConfig(
            data=str(images),
            output=output,
            recipe=recipe,
            weights=weights,
            qat=True,
            **options,  # type: ignore[arg-type]
        )
    )
    network, state = kept[-1]
    network.load_state_dict(state)
    return network


def beginning(weights: Path, images: Path, backend: str, bits: int) -> tuple[FakeQuantized, onnx.ModelProto]:
    """The network before its first step, and the deployable graph that it was made of."""
    made: list[tuple[FakeQuantized, onnx.ModelProto]] = []

    def keep(exact: onnx.ModelProto, quantized: onnx.ModelProto, **options: Any) -> FakeQuantized:
        made.append((FakeQuantized(exact, quantized, **options), quantized))
        raise KeyboardInterrupt

    config = TrainConfig(
        data=str(images), output=weights.parent / "begun", recipe=find_recipe("qat", ["steps=1"]), weights=weights,
        qat=True, backend=backend, weight_bits=bits,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization_aware, "FakeQuantized", keep)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    return made[0]


@pytest.mark.parametrize(
    ("backend", "bits", "most"),
    # weights of seven bits, because this CPU form adds two products in 16; of eight; of four
    [("openvino", 8, 63), ("onnxruntime", 8, 127), ("openvino", 4, 7)],
)
def test_training_begins_with_the_integers_of_the_graph(
    backend: str, bits: int, most: int, images: Path, small_weights: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "best.safetensors"
    shutil.copytree(small_weights.parent, tmp_path, dirs_exist_ok=True)
    state = load_file(weights)
    state["bn1.weight"][0] *= 1e-6  # a channel whose scale FP16 holds only coarsely
    save_file(state, weights, read_metadata(weights))
    network, graph = beginning(weights, images, backend, bits)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    largest = []
    for node in network.nodes:
        integers, scales = (constants[f"{node}.weight.{kind}"] for kind in ("int8", "scale"))
        np.testing.assert_array_equal(network.integers(node).numpy(), integers, err_msg=node)
        np.testing.assert_array_equal(network.weight_scales()[node], scales, err_msg=node)
        distance = network.weights[node.replace(".", "/")].detach().numpy() - integers
        assert np.abs(distance).max() < 0.101, node
        if node != "conv1":  # whose input is changed to pixels
            # the fp32 network has the rounded weights, because biases belong to them
            weight, bias = network.exact_parameters(node)
            np.testing.assert_allclose(
                weight, integers * scales.reshape(-1, *[1] * (integers.ndim - 1)), err_msg=node
            )
            np.testing.assert_allclose(bias, constants[f"{node}.bias"], rtol=1e-6, atol=1e-9, err_msg=node)
        largest += np.abs(integers.reshape(len(integers), -1).astype(int)).max(1).tolist()
    inner = largest[16:-4]
    assert max(inner) == most
    # the scales are not those of the largest integer everywhere, or this shows nothing
    assert min(inner) < most


def check_layers(network: FakeQuantized, x: np.ndarray, expected: dict[str, np.ndarray]) -> None:
    """Every quantizer's integers, each layer on the graph's own integers; ours may differ next to a tie alone.

    Behind our channels the graph may have constant ones, through which it stores zero as -128.
    """
    exact = {"input": torch.from_numpy(x)}
    seen = []

    def observe(node: Node, value: torch.Tensor) -> None:
        if node.op == "QuantizeLinear":
            theirs = torch.from_numpy(expected[node.output].astype(np.float32))[:, : value.shape[1]]
            # sums in another order can fall on the other side of a tie
            apart = value != theirs
            assert float(apart.float().mean()) < 1e-4, node.output
            assert float((value - theirs).abs().max()) <= 1, node.output
            zero = network.constant(node.inputs[2]).float()
            steps = exact[node.inputs[0]] / network.constant(node.inputs[1]) + zero
            distance = (steps - steps.floor() - 0.5).abs()[apart]
            assert not len(distance) or float(distance.max()) < 3e-3, node.output
            seen.append(node.output)
            value.copy_(theirs)
        else:
            exact[node.output] = value

    with torch.no_grad():
        logits = network.run(torch.from_numpy(x), observe).numpy()
    assert set(seen) == set(expected) - {"logits"}
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4 * np.abs(expected["logits"]).max())


def integers_in(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {model.graph.input[0].name: x})
    return dict(zip([model.graph.output[0].name, *names], values, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "normalization", "learned", "bits"),
    [
        ("resnet8-cifar", "imagenet", True, 4),
        ("resnet11-cifar-bottleneck", "pixel-mean", False, 8),
        ("plain8-cifar", "channel-mean", True, 8),
    ],
)
def test_the_deployable_graph_is_what_was_trained(
    model: str,
    normalization: str,
    learned: bool,
    bits: int,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = trained(tmp_path / "fp32", images, model, f"normalization={normalization}")
    network = fine_tuned(
        weights, images, tmp_path / "int8", monkeypatch, backend="openvino", fixed_scales=not learned,
        weight_bits=bits,
    )  # fmt: skip
    best = tmp_path / "int8/best.safetensors"
    report = rescompile.build(best, output=tmp_path / "engine", validation=images, backend="openvino")
    assert report.calibration is not None
    # after so few steps the verdict may be either
    path = Path(report.engine_directory) / "model.onnx"
    graph = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for node in network.nodes:
        ours = network.integers(node).numpy()
        rows, columns = ours.shape[:2]
        np.testing.assert_array_equal(constants[f"{node}.weight.int8"][:rows, :columns], ours, err_msg=node)
    if bits < 8:
        inner = [np.unique(network.integers(node).numpy()) for node in network.nodes[1:-1]]
        assert set(np.concatenate(inner)) <= set(range(-7, 8))
    for tensor, scale in network.activation_scales().items():
        assert constants[f"{tensor}.scale"] == np.float32(scale)
    known = read_trained(best)
    assert known is not None
    pixels = np.random.default_rng(1).integers(0, 256, (1000, 8, 8, 3)).astype(np.uint8)
    x = normalize(pixels, known.preprocess)
    check_layers(network, x, integers_in(path, x))


@pytest.mark.slow
def test_learned_scales_follow_the_loss(
    images: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fine_tuned(small_weights, images, tmp_path / "int8", monkeypatch, latest=False)
    lines = (tmp_path / "int8/history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    # the first line is the calibrated network, the others are means over the steps before them
    assert [record["step"] for record in records] == [0, 6, 12]
    assert records[2]["train_loss"] < records[1]["train_loss"]
    kept = read_trained(tmp_path / "int8/best.safetensors")
    assert kept is not None
    # nearest to the fp32 network, and not the first with the fewest wrong answers
    assert kept.step == min(records, key=lambda record: record["test_loss"])["step"]
    assert all(parameter.grad is not None for parameter in network.scales.values())


def test_what_qat_refuses(images: Path, tmp_path: Path) -> None:
    recipe = find_recipe("qat", ["steps=2", "batch_size=16"])
    with pytest.raises(UsageError, match="pass its --weights"):
        TrainConfig(data=str(images), output=tmp_path, recipe=recipe, model="resnet8-cifar", qat=True)
    with pytest.raises(UsageError, match="do nothing without --qat"):
        TrainConfig(data=str(images), output=tmp_path, recipe=recipe, model="resnet8-cifar", weight_bits=4)
    with pytest.raises(UsageError, match="--weight-bits 1 is not possible: pass 2 to 8"):
        TrainConfig(
            data=str(images), output=tmp_path, recipe=recipe, weights=tmp_path, qat=True, weight_bits=1
        )
    weights = trained(tmp_path / "fp32", images, "resnet8-cifar-preact", "steps=2")
    with pytest.raises(UsageError, match="do not: build it with --effort best"):
        train(TrainConfig(data=str(images), output=tmp_path / "x", recipe=recipe, weights=weights, qat=True))


def test_gradients_pass_where_values_are_inside(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained(tmp_path / "fp32", images, "plain8-cifar", "steps=2")
    network = fine_tuned(weights, images, tmp_path / "int8", monkeypatch)
    network.zero_grad()
    network.run(torch.zeros(2, 3, 8, 8)).square().sum().backward()
    for name, parameter in network.weights.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
    assert float(network.biases["fc"].grad.abs().max()) > 0

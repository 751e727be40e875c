"""A network from any source becomes one folded graph that computes the same, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from calibration.preprocess import CIFAR, IMAGENET
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.opening import open_source
from rescompile.building.source import Source
from rescompile.building.source_from_graph import source_of
from rescompile.config import ModelConfig, parse_sizes
from rescompile.errors import CheckpointError, GraphError, UsageError
from rescompile.graph.export import export
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.progress import Silent
from rescompile.sources import module_export
from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of
from rescompile.sources.class_names import read_class_names
from rescompile.sources.modules import network_of
from rescompile.sources.preprocess_options import PreprocessOptions


def opened(**fields: Any) -> Source:
    return open_source(ModelConfig(**fields), Silent())


@pytest.fixture(scope="module")
def exported(small_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folded graph as an ONNX file."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(small_source.graph, path)
    return path


def test_a_checkpoint_names_its_network_by_itself(small: Path, small_source: Source) -> None:
    found = small_source
    assert (found.name, found.depth, found.residual_adds, found.class_count) == ("resnet20-cifar", 20, 9, 10)
    assert (found.preprocess, found.class_names) == (CIFAR, None)
    assert (found.is_imagenet, found.random) == (False, False)
    (note,) = found.notes
    assert "dilation, padding modes and pools leave no trace" in note
    assert (found.checkpoint.source, len(found.checkpoint.sha256)) == ("net.pth", 64)


def test_the_graph_computes_what_pytorch_computes(small: Path, small_source: Source) -> None:
    checkpoint = load_checkpoint(small / "net.pth")
    images = np.random.default_rng(5).standard_normal((3, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        expected = build_model(spec_of(checkpoint), checkpoint)(torch.from_numpy(images)).numpy()
    found = reference_session(small_source.graph.SerializeToString(), optimize=False)(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not [node.name for node in small_source.graph.graph.node if node.op_type == "BatchNormalization"]


def test_random_weights_are_seeded_and_say_what_they_are() -> None:
    first, again = (opened(model="resnet20-cifar", weights="random", seed=7) for _ in range(2))
    assert first.checkpoint == again.checkpoint
    assert first.graph.SerializeToString() == again.graph.SerializeToString()
    assert opened(model="resnet20-cifar", weights="random", seed=8).checkpoint != first.checkpoint
    assert "accuracy means nothing" in first.notes[0]


def test_imagenet_classes_have_their_names() -> None:
    found = opened(depth=18, weights="random", preprocess=PreprocessOptions(crop=32))
    assert found.is_imagenet
    assert found.class_names is not None
    assert (len(found.class_names), found.class_names[0]) == (1000, "tench")


def test_an_export_that_computes_something_else_is_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self, *given: object, **options: object) -> None:
            pass

        def __call__(self, images: Any) -> Any:
            return np.ones((len(images), 10), np.float32)

        def tensors(self, images: Any) -> dict[str, Any]:
            return {"logits": self(images)}

    monkeypatch.setattr("rescompile.building.fidelity.reference_session", Wrong)
    with pytest.raises(
        GraphError, match=r"exported graph differs from the network itself by .*at most 0\.0001"
    ):
        opened(weights=str(small / "net.pth"))


def test_weights_that_overflow_are_refused(small: Path, tmp_path: Path) -> None:
    state = torch.load(small / "net.pth", weights_only=True)
    for name in ("conv1.weight", "fc.weight"):
        state[name] = state[name] * 1e25
    torch.save(state, tmp_path / "huge.pth")
    with pytest.raises(CheckpointError, match="logits are not finite: the weights overflow"):
        opened(weights=str(tmp_path / "huge.pth"))


def test_options_are_held_against_the_network_before_its_file_is_read() -> None:
    with pytest.raises(UsageError, match="resnet50 has no shortcut option A"):
        opened(depth=50, weights="nowhere.pth", shortcut="A")


def test_an_onnx_file_is_the_same_network(exported: Path, small_source: Source) -> None:
    found = opened(onnx=exported)
    assert (found.name, found.residual_adds, found.preprocess) == ("resnet20-cifar", 9, CIFAR)
    assert found.checkpoint.source == "net.onnx"
    images = np.random.default_rng(5).standard_normal((2, 3, 32, 32), dtype=np.float32)
    expected, logits = (
        reference_session(graph.SerializeToString(), optimize=True)(images)
        for graph in (small_source.graph, found.graph)
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_weights_beside_an_onnx_file_are_part_of_its_hash(exported: Path, tmp_path: Path) -> None:
    model, path = onnx.load(exported), tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    before = opened(onnx=path).checkpoint.sha256
    data = bytearray((tmp_path / "net.bin").read_bytes())
    data[1] ^= 1
    (tmp_path / "net.bin").write_bytes(data)
    assert opened(onnx=path).checkpoint.sha256 != before
    (tmp_path / "net.bin").unlink()
    with pytest.raises(GraphError, match=r"net\.(bin|onnx)"):
        opened(onnx=path)


def test_the_crop_of_an_onnx_file_is_its_own(exported: Path) -> None:
    assert opened(onnx=exported, preprocess=PreprocessOptions(crop=32)).preprocess.crop == 32
    with pytest.raises(UsageError, match=r"--crop 64 does not fit .*net\.onnx, whose input is 32 pixels"):
        opened(onnx=exported, preprocess=PreprocessOptions(crop=64))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x07"])
def test_what_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"net\.onnx is not a valid ONNX model"):
        opened(onnx=tmp_path / "net.onnx")


def test_a_folder_is_no_onnx_model(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"cannot be read \(Is a directory\)"):
        opened(onnx=tmp_path)


def test_imagenet_preprocessing_is_scaled_to_an_onnx_files_input(tmp_path: Path) -> None:
    small_input = opened(depth=18, weights="random", preprocess=PreprocessOptions(crop=64))
    onnx.save(small_input.graph, tmp_path / "net.onnx")
    found = opened(onnx=tmp_path / "net.onnx")
    assert found.name == "resnet18"
    assert (found.preprocess.resize, found.preprocess.crop, found.preprocess.mean) == (73, 64, IMAGENET.mean)
    assert found.is_imagenet


def test_class_names_are_one_line_each(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("".join(f" kind {n} \n\n" for n in range(10)))
    found = opened(weights=str(small / "net.pth"), classes=path)
    assert found.class_names == tuple(f"kind {n}" for n in range(10))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist; --classes takes a text file"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"cat\ndog\n", "names 2 classes, the network has 10"),
        (b'["cat", 3]', "is not a list of names, nor does it number them"),
        (b'{"cat": 1, "dog": 2}', "is not a list of names, nor does it number them"),
        (b'{"cat": 0, "dog": 0}', "is not a list of names, nor does it number them"),
        (b'"cat"', "is not a list of names, nor does it number them"),
        (b'["cat"', "cannot be read as text"),
        (b"[" * 100_000, "cannot be read as text"),
    ],
)
def test_class_names_that_cannot_be_used(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / ("names.json" if content and content[:1] in b'[{"' else "names.txt")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        read_class_names(path, 10)


@pytest.mark.parametrize(
    "content",
    [
        '["cat", "dog"]',
        '{"0": "cat", "1": " dog "}',
        '{"1": "dog", "0": "cat"}',
        '{"dog": 1, "cat": 0}',
        '{"0": ["n01", "cat"], "1": ["n02", "dog"]}',
    ],
)
def test_class_names_in_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    assert read_class_names(path, 2) == ("cat", "dog")


def test_a_network_of_another_shape_sees_the_whole_photograph(tmp_path: Path) -> None:
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), 5, seed=0)
    onnx.save(export(model, image_size=(48, 24)), tmp_path / "wide.onnx")
    found = opened(onnx=tmp_path / "wide.onnx").preprocess
    assert (found.resize, found.crop) == ((48, 24), (48, 24))
    asked = PreprocessOptions(resize=60)
    assert opened(onnx=tmp_path / "wide.onnx", preprocess=asked).preprocess.resize == 60


def test_a_grey_network_asks_how_it_is_normalized(tmp_path: Path) -> None:
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), 5, seed=0)
    model.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1, bias=False)
    onnx.save(export(model, image_size=32), tmp_path / "grey.onnx")
    with pytest.raises(UsageError, match="pass --mean and --std"):
        opened(onnx=tmp_path / "grey.onnx")
    options = PreprocessOptions(mean=(0.13,), std=(0.31,))
    found = opened(onnx=tmp_path / "grey.onnx", preprocess=options).preprocess
    assert (found.color, found.mean, found.crop) == ("GRAY", (0.13,), 32)


def test_a_grey_network_of_a_package_keeps_the_size_of_its_preprocessing_in_colour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """timm's configuration stays the one of its weights, when a network is made for grey images."""
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")
    network = network_of(nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
                         preprocess=CIFAR)  # fmt: skip
    with pytest.raises(UsageError, match="of 1 channel, are normalized; pass --mean and --std"):
        opened(network=network)
    found = opened(network=network, preprocess=PreprocessOptions(mean=(0.13,), std=(0.31,))).preprocess
    assert (found.color, found.mean, found.crop) == ("GRAY", (0.13,), CIFAR.crop)


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_module_with_a_softmax_at_its_end_is_compared_with_it(
    ending: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ]
    network = network_of(nn.Sequential(*layers, ending), size=(8, 8))
    found = source_of(network, ModelConfig(network=network, sizes=parse_sizes("8:12")))
    assert found.endings == (type(ending).__name__,)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = nn.Sequential(*layers)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(reference_session(found.graph, optimize=False)(images), expected, atol=1e-5)

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rescompile
from calibration.errors import ImageSetError
from calibration.images import InMemoryImages, open_image_set
from calibration.preprocess import CIFAR, normalize
from rescompile.building.from_python import build_config, image_set
from rescompile.config import BuildConfig, ModelConfig
from rescompile.errors import UsageError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources import module_export

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
FLOATS = normalize(PIXELS, CIFAR)
LABELS = np.arange(12) % 10


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.from_numpy(FLOATS), torch.from_numpy(LABELS)), batch_size=5)


@pytest.mark.parametrize(
    "images",
    [
        lambda: FLOATS,
        lambda: torch.from_numpy(FLOATS).double(),
        lambda: (FLOATS, LABELS),
        lambda: (FLOATS, None),
        lambda: {"image": FLOATS, "label": LABELS},
        loader,
        lambda: [
            {"pixel_values": torch.from_numpy(FLOATS[:6])},
            {"pixel_values": torch.from_numpy(FLOATS[6:])},
        ],
        lambda: [(image, label) for image, label in zip(FLOATS, LABELS, strict=True)],
    ],
    ids=["array", "tensor", "pair", "no labels", "dictionary", "loader", "dictionaries", "samples"],
)
def test_normalized_images_reach_the_network_as_they_are(images: Any) -> None:
    found = image_set(images(), 100, "calibration images")
    assert isinstance(found, InMemoryImages)
    opened = open_image_set(found)
    batches = list(opened.batches(CIFAR, 5))
    np.testing.assert_array_equal(
        np.concatenate([normalize(batch.images, CIFAR) for batch in batches]), FLOATS
    )
    if opened.labels is not None:
        np.testing.assert_array_equal(opened.labels, LABELS)


def test_pixels_in_memory_are_preprocessed_as_files_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    smaller = msgspec.structs.replace(CIFAR, resize=20, crop=16)
    sets = [open_image_set(tmp_path / "set.npz", limit=4, seed=1)]
    sets.append(open_image_set(InMemoryImages(PIXELS, LABELS), limit=4, seed=1))
    ours, theirs = (np.concatenate([batch.images for batch in each.batches(smaller, 3)]) for each in sets)
    np.testing.assert_array_equal(ours, theirs)
    assert len(sets[1]) == 4
    assert sets[1].fingerprint != open_image_set(InMemoryImages(PIXELS, LABELS)).fingerprint


def test_loader_is_read_up_to_the_limit() -> None:
    found = image_set(loader(), 7, "x")
    assert isinstance(found, InMemoryImages)
    assert len(found.images) == 7
    assert found.labels is not None
    assert len(found.labels) == 7


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (3, "are a int: pass a folder"),
        (FLOATS[0], r"float32 \[3, 32, 32\]"),
        (PIXELS.astype(np.int64), r"int64"),
        ([("a", "b")], r"without images \[N, C, H, W\]"),
        ([], "are none"),
        ((FLOATS, LABELS[:3]), "pass one label for each"),
        ((FLOATS, LABELS + 0.5), "pass class numbers"),
        (FLOATS * np.nan, "NaN or infinite"),
        ([()], "come as tuple without images"),
        ([(FLOATS, LABELS[:3]), (FLOATS[:3], LABELS)], "a batch .* has 12 images and 3 labels"),
        ([(FLOATS, LABELS), (FLOATS,)], "1 of 2 batches .* have labels"),
        ([FLOATS, FLOATS[:, :, :8]], r"several sizes, \[3, 32, 32\] and \[3, 8, 32\]"),
        ({"train": FLOATS}, "come as dict without images"),
        ([torch.from_numpy(FLOATS).to_sparse()], "come as Tensor without images"),
        (FLOATS.transpose(0, 2, 3, 1), r"looks like images \[N, H, W, C\]: .*transpose\(0, 3, 1, 2\)"),
        (PIXELS.transpose(0, 3, 1, 2), r"looks like pixels \[N, C, H, W\]"),
    ],
)
def test_images_in_no_known_form_are_refused(images: Any, said: str) -> None:
    with pytest.raises(ImageSetError, match=said):
        image_set(images, 100, "calibration images")


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ImageSetError, match=r"\[3, 32, 32\], the network takes \[3, 16, 16\]"):
        next(open_image_set(InMemoryImages(FLOATS)).batches(msgspec.structs.replace(CIFAR, crop=16), 2))


def test_networks_by_name_and_path(tmp_path: Path) -> None:
    for suffix in ("pth", "onnx"):
        (tmp_path / f"net.{suffix}").write_bytes(b"x")
    assert build_config("resnet50", {}).model == ModelConfig(model="resnet50")
    assert build_config("timm:resnet18", {"weights": "random"}).model.weights == "random"
    assert build_config(tmp_path / "net.pth", {}).model.weights == str(tmp_path / "net.pth")
    assert build_config(str(tmp_path / "net.onnx"), {}).model.onnx == tmp_path / "net.onnx"
    config = build_config(
        "resnet20-cifar", {"calibration": "images", "batch": 8, "preprocess": CIFAR, "size": 32}
    )
    assert config.calibration.images == Path("images")
    assert (config.batch.min, config.batch.max) == (8, 8)
    assert config.model.preprocess.apply() == CIFAR
    assert build_config("resnet20-cifar", {"calibration": "table.json"}).calibration.table == Path(
        "table.json"
    )


def test_the_size_of_float_images_is_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "net.pth").touch()
    small = FLOATS[:, :, :20, :24]
    for options, crop in (
        ({"calibration": FLOATS}, 32),
        ({"calibration": PIXELS, "validation": (small, LABELS)}, (20, 24)),
        ({"calibration": FLOATS, "size": 16}, 16),
        ({"calibration": PIXELS}, None),
    ):
        assert build_config(tmp_path / "net.pth", options).model.preprocess.crop == crop  # type: ignore[arg-type]
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    live = build_config(network, {"calibration": small}).model.network
    assert live is not None
    assert [dim.dim_value for dim in live.graph.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 20, 24]


def test_a_folder_with_a_configuration_is_hugging_faces_or_timms(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = build_config(tmp_path, {"outputs": ("c2",)}).model
    assert (model.model, model.outputs) == (f"hf:{tmp_path}", ("c2",))
    assert build_config(tmp_path, {"outputs": "c2, c3"}).model.outputs == ("c2", "c3")
    assert build_config(tmp_path, {"class_names": "names.txt"}).model.classes == Path("names.txt")


def test_class_names_must_be_as_many_as_classes(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UsageError, match="class_names names 2 classes, the network has 4"):
        rescompile.build(
            network, calibration=FLOATS, class_names=("a", "b"), backend="onnxruntime", output=tmp_path / "e"
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limits": {"max_relative_rms": 1}}, r"takes rescompile\.Limits\(\.\.\.\) as limits, not {'max"),
        ({"seed": "1"}, "takes a whole number as seed, not '1'"),
        ({"size": "16"}, r"takes a side, or \(height, width\) as size, not '16'"),
        ({"size": (1, 2, 3)}, "as size"),
        ({"size": (16, None)}, "as size"),
        ({"calibration_images": 0.5}, "as calibration_images"),
    ],
)
def test_values_of_another_type_are_refused_by_keyword(options: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        build_config("resnet20-cifar", options)


def test_blocks_are_named_as_on_the_command_line() -> None:
    for given, expected in (
        ("layer1.0, layer2.0", ("layer1.0", "layer2.0")),
        ("none", "none"),
        (("a",), ("a",)),
    ):
        assert build_config("resnet20-cifar", {"fp16_blocks": given}).fp16_blocks == expected  # type: ignore[typeddict-item]


def test_wrong_calls_are_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"net\.pth does not exist"):
        build_config("net.pth", {})
    with pytest.raises(TypeError, match="no keyword callibration"):
        build_config("resnet50", {"callibration": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match="not a int"):
        build_config(3, {})
    with pytest.raises(TypeError, match="leave force out"):
        build_config(BuildConfig(model=ModelConfig(model="resnet50"), precision="fp16"), {"force": True})
    (tmp_path / "net.pth").touch()
    with pytest.raises(UsageError, match="brings its own weights"):
        build_config(tmp_path / "net.pth", {"weights": "other.pth"})
    with pytest.raises(UsageError, match="--outputs needs a network with modules"):
        build_config(tmp_path / "net.pth", {"outputs": ("c2",)})
    with pytest.raises(UsageError, match="uint8 pixels cannot be checked on normalized images"):
        build_config("resnet20-cifar", {"calibration": FLOATS, "input_format": "uint8-nhwc"})


def test_live_module_to_verified_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")
    module, _ = random_model(find(depth=None, name="resnet20-cifar"), 10, 0)
    module.train()
    report = rescompile.build(
        module, calibration=loader(), validation=FLOATS, preprocess=CIFAR, effort="fast",
        backend="onnxruntime", output=tmp_path / "engine", class_names=[f"class {number}" for number in range(10)],
        limits=rescompile.Limits(max_relative_rms=0.3), fp16_blocks="none",
    )  # fmt: skip
    assert module.training
    assert report
    assert report.image_source == "validation images"
    engine = rescompile.load(tmp_path / "engine")
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(FLOATS)).numpy()
    found = engine(FLOATS)
    assert np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()) < 0.2
    assert engine.classify(PIXELS[0])[0][0].startswith("class ")


def test_a_mean_image_of_the_program_is_kept(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"x")
    mean = np.full((3, 32, 32), 0.25, "<f4").tobytes()
    own = msgspec.structs.replace(CIFAR, mean=(0.0,) * 3, std=(1 / 255,) * 3, mean_image=mean)
    options = build_config(tmp_path / "net.pth", {"preprocess": own}).model.preprocess
    assert options.apply(CIFAR) == own
    assert options.states_normalization


def test_several_modules_become_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")
    members = [random_model(find(depth=None, name="resnet20-cifar"), 10, seed)[0] for seed in (0, 1)]
    model = build_config(members, {"preprocess": CIFAR, "ensemble_mean": "logits"}).model
    assert [member.network is not None for member in model.members] == [True, True]
    assert model.ensemble_mean == "logits"


def test_stages_of_a_backbone_are_the_outputs_of_one_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")
    module, _ = random_model(find(depth=None, name="resnet20-cifar"), 10, 0)
    asked = ("c2", "layer2.1", "c4")
    report = rescompile.build(
        module, outputs=asked, calibration=FLOATS, validation=FLOATS, preprocess=CIFAR, effort="fast",
        output=tmp_path / "engine", limits=rescompile.Limits(max_relative_rms=0.3), fp16_blocks="none",
    )  # fmt: skip
    assert report
    engine = rescompile.load(tmp_path / "engine")
    found = engine(FLOATS)
    assert tuple(found) == asked
    kept = {}
    for name in asked:
        place = {"c2": "layer1", "c4": "layer3"}.get(name, name)
        module.get_submodule(place).register_forward_hook(
            lambda _, __, answer, name=name: kept.__setitem__(name, answer.numpy())
        )
    with torch.inference_mode():
        module.eval()(torch.from_numpy(FLOATS))
    errors = [np.sqrt(((found[name] - kept[name]) ** 2).mean() / (kept[name] ** 2).mean()) for name in asked]
    assert max(errors) < 0.3
    assert report.relative_rms == pytest.approx(errors[0], rel=0.05)
    with pytest.raises(UsageError, match="has no module c6"):
        build_config(module, {"outputs": ("c6",), "preprocess": CIFAR})

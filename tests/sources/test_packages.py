"""Networks by name. Tests of a package run where it is installed and matches this torch."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rescompile.errors import CheckpointError, UsageError
from rescompile.files import sha256_of
from rescompile.metrics import relative_rms
from rescompile.sources import frozen_norms, module_export, packages
from rescompile.sources.fitting import read_own_weights
from rescompile.sources.modules import network_of
from rescompile.sources.name_prefixes import has_scheme
from rescompile.sources.network import SourceNetwork
from rescompile.sources.packages import open_folder, open_named
from tests.sources.zoo import run


@pytest.fixture(autouse=True)
def quick_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")


def package(name: str) -> Any:
    return pytest.importorskip(name, exc_type=Exception)


def check(network: Any, side: int = 64) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    assert network.reference is not None
    expected = network.reference(x)
    np.testing.assert_allclose(run(network, x), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_schemes_are_told_from_names() -> None:
    assert has_scheme("timm:resnet18")
    assert has_scheme("module:nets:make")
    assert not has_scheme("resnet50")
    assert not has_scheme("other:resnet18")
    assert not has_scheme(None)
    with pytest.raises(UsageError, match="no name behind the colon"):
        open_named("timm:")


def test_torchvision_of_another_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(packages, "require", broken)
    with pytest.raises(
        UsageError, match=r"built for another torch than .*nms.*--torch-backend cpu torch torchvision"
    ):
        open_named("timm:resnet18")


def test_timm_by_name(tmp_path: Path) -> None:
    timm = package("timm")
    path = tmp_path / "own.pth"
    torch.save({"state_dict": timm.create_model("resnet18d", num_classes=7).state_dict()}, path)
    network = open_named("timm:resnet18d.ra2_in1k", str(path), size=(64, 64))
    assert network.name == "resnet18d"
    assert network.preprocess is not None
    assert network.preprocess.interpolation == "bicubic"
    assert network.preprocess_from == "timm's pretrained_cfg"
    assert network.checkpoint.source == "own.pth"
    assert any("--crop 288" in note for note in network.notes)
    assert run(network, np.zeros((1, 3, 64, 64))).shape == (1, 7)
    check(network)
    with pytest.raises(UsageError, match=r"timm has no network called resnet18x\. Did you mean"):
        open_named("timm:resnet18x")
    with pytest.raises(CheckpointError, match="does not fit timm's resnet34"):
        open_named("timm:resnet34", str(path))


def test_folder_that_timm_saved(tmp_path: Path) -> None:
    timm = package("timm")
    module = timm.create_model("resnet18", num_classes=3)
    timm.models.save_for_hf(module, tmp_path, model_config={"label_names": ["a", "b", "c"]})
    network = open_named(f"timm:{tmp_path}", size=(64, 64))
    assert network.class_names == ("a", "b", "c")
    assert network.preprocess is not None
    assert "config.json" in (network.preprocess_from or "")
    check(network)


def test_torchvision_by_name(tmp_path: Path) -> None:
    models = package("torchvision.models")
    path = tmp_path / "own.pth"
    torch.save(models.resnet18().state_dict(), path)
    network = open_named("torchvision:resnet18", str(path), size=(64, 64))
    assert network.class_names is not None
    assert network.class_names[0] == "tench"
    assert network.preprocess is not None
    assert (network.preprocess.resize, network.preprocess.crop) == (73, 64)
    assert network.preprocess_from == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    check(network)
    assert "random" in open_named("torchvision:resnet18", "random", size=(64, 64)).checkpoint.source
    with pytest.raises(UsageError, match="has no weights V9 of resnet18"):
        open_named("torchvision:resnet18.V9")
    with pytest.raises(UsageError, match="no classifier called resnet17"):
        open_named("torchvision:resnet17")
    with pytest.raises(UsageError, match="fcn_resnet50 is not a classifier: build the backbone"):
        open_named("torchvision:fcn_resnet50")


def test_folder_that_hugging_face_saved(tmp_path: Path) -> None:
    transformers = package("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog"},
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    processor = {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    network = open_named(f"hf:{tmp_path}")
    assert network.class_names == ("cat", "dog")
    assert network.preprocess is not None
    assert (network.preprocess.resize, network.preprocess.crop) == (73, 64)
    assert network.kind is None
    check(network)
    described = json.loads((tmp_path / "config.json").read_text())
    described["problem_type"] = "multi_label_classification"
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert open_named(f"hf:{tmp_path}").kind == "multilabel"


def test_folders_without_a_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is not a configuration"):
        open_folder(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        open_named("hf:nobody/nothing")


CODE = """
from torch import nn

def make():
    body = nn.Sequential(*[nn.Sequential(nn.Conv2d(width, 4, 3), nn.ReLU()) for width in (3, 4, 4)])
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def number():
    return 3

def needs(width):
    return width

def broken():
    raise ValueError("no such width")

def lacks():
    import no_such_package_here

network = make()

constant = 3
"""


def test_function_in_the_users_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks_of_a_test.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    place = "module:own_networks_of_a_test"
    network = open_named(f"{place}:make", "random", size=(16, 16))
    check(network, side=16)
    weights = tmp_path / "net.pth"
    parts = {f"0.{index}.0": torch.nn.Conv2d(width, 4, 3) for index, width in enumerate((3, 4, 4))}
    parts["3"] = torch.nn.Linear(4, 2)
    own = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    torch.save(own, weights)
    loaded = open_named(f"{place}:make", str(weights), size=(16, 16))
    assert loaded.checkpoint.source == "net.pth"
    assert loaded.checkpoint.sha256 != network.checkpoint.sha256
    check(open_named(f"{place}:network", "random", size=(16, 16)), side=16)
    for name, said in (
        (f"{place}:number", "returns a int"),
        (f"{place}:constant", "is a int; it must return"),
        (f"{place}:needs", r"TypeError: needs\(\) missing 1 .*; run it by itself, without arguments"),
        (f"{place}:broken", r"ValueError: no such width, at own_networks_of_a_test\.py:15\)"),
        (f"{place}:lacks", "install no_such_package_here"),
        ("module:own_networks_of_a_test.py:make", "write module:own_networks_of_a_test:make"),
        (f"{place}:absent", "check the function's name"),
        (place, "names no function"),
        ("module:no_such_module_here:make", "cannot be imported"),
    ):
        with pytest.raises(UsageError, match=said):
            open_named(name, "random", size=(16, 16))


def test_backbone_of_a_detectors_checkpoint(tmp_path: Path) -> None:
    models = package("torchvision.models")
    torch.manual_seed(0)
    detector = models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    path = tmp_path / "detector.pth"
    torch.save(detector.state_dict(), path)
    stages = ("c2", "c3", "c4", "c5")
    network = open_named("torchvision:resnet50", str(path), size=(64, 64), outputs=stages)
    assert tuple(output.name for output in network.graph.graph.output) == stages
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = detector.backbone.body(torch.from_numpy(x))["0"].numpy()
    np.testing.assert_allclose(run(network, x), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(UsageError, match="--outputs c2,c3,c4,c5"):
        open_named("torchvision:resnet50", str(path))


def _frozen(spread: float, epsilon: float) -> nn.Module:
    """torchvision's Faster R-CNN with frozen norms, whose smallest variances are about ``spread``."""
    models, ops = package("torchvision.models"), package("torchvision.ops.misc")
    torch.manual_seed(0)
    body = models.resnet18(weights=None, norm_layer=ops.FrozenBatchNorm2d)
    for module in body.modules():
        if isinstance(module, ops.FrozenBatchNorm2d):
            module.running_var.uniform_(spread, 2)
            module.eps = epsilon
    stages = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    getter = package("torchvision.models._utils").IntermediateLayerGetter
    return nn.ModuleDict({"backbone": nn.ModuleDict({"body": getter(body, stages)})}).eval()


def test_epsilon_of_frozen_norms_is_known_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published files are known by their hash; of others the live network has to say it, where it matters."""
    path = tmp_path / "detector.pth"
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)

    def opened() -> SourceNetwork:
        return open_named("torchvision:resnet18", str(path), size=(64, 64), outputs=("c5",))

    def expected(detector: nn.Module) -> NDArray[np.float32]:
        with torch.inference_mode():
            return detector["backbone"]["body"](torch.from_numpy(x))["3"].numpy()

    for epsilon in (0.0, 1e-5):
        detector = _frozen(1e-6, epsilon)
        torch.save(detector.state_dict(), path)
        with pytest.raises(
            CheckpointError, match=r"frozen batch norms, whose epsilon it does not hold.*body"
        ):
            opened()
        with monkeypatch.context() as patch:
            patch.setitem(frozen_norms._PUBLISHED, sha256_of(path)[:8], epsilon)
            answer = run(opened(), x)
            assert relative_rms(expected(detector), answer) < 1e-4
            assert any("epsilon 0" in note for note in opened().notes) == (epsilon == 0)
        live = network_of(detector["backbone"]["body"], size=(64, 64), outputs=("layer4",))
        assert relative_rms(expected(detector), run(live, x)) < 1e-4
    assert relative_rms(expected(_frozen(1e-6, 0.0)), expected(_frozen(1e-6, 1e-5))) > 1e-2
    torch.save(_frozen(0.5, 0.0).state_dict(), path)
    assert relative_rms(expected(_frozen(0.5, 0.0)), run(opened(), x)) < 1e-3


def test_published_detectors_are_those_of_torchvision() -> None:
    detection = package("torchvision.models.detection")
    text = "".join(Path(str(each.__file__)).read_text("utf-8") for each in (
        detection.faster_rcnn, detection.mask_rcnn, detection.keypoint_rcnn, detection.retinanet
    ))  # fmt: skip
    assert all(f"-{start}.pth" in text for start in frozen_norms._PUBLISHED)
    assert text.count("overwrite_eps(model, 0.0)") == list(frozen_norms._PUBLISHED.values()).count(0.0)


def test_backbone_of_a_segmenters_checkpoint_is_dilated(tmp_path: Path) -> None:
    models = package("torchvision.models")
    torch.manual_seed(0)
    segmenter = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=3).eval()
    path = tmp_path / "segmenter.pth"
    torch.save(segmenter.state_dict(), path)
    network = open_named("torchvision:resnet50", str(path), size=(64, 64), outputs=("c5",))
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = segmenter.backbone(torch.from_numpy(x))["out"].numpy()
    np.testing.assert_allclose(run(network, x), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "densenet121", "squeezenet1_1", "regnet_y_400mf", "googlenet"]
)
def test_torchvisions_classifiers_take_weights_of_other_classes(name: str, tmp_path: Path) -> None:
    """Their heads have other names than fc; GoogLeNet's published weights come without its heads for training."""
    models = package("torchvision.models")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = models.get_model(
            name, num_classes=6, **({"init_weights": False} if name == "googlenet" else {})
        )
    weights = {
        f"net.{key}": value for key, value in own.state_dict().items() if not key.startswith(("aux1", "aux2"))
    }
    torch.save({"state_dict": weights}, tmp_path / "own.pth")
    made = packages._for_torchvision(str(tmp_path / "own.pth"), packages._Asked())
    options = made.options(models, name)
    assert options["num_classes"] == 6
    network = models.get_model(name, weights=None, **options)
    notes = made.install(network, name)
    assert torch.equal(next(network.parameters()), next(own.parameters()))
    assert any("transform_input=True" in note for note in notes) == (name == "googlenet")


def test_a_classifier_in_a_programs_backbone_is_no_detector(tmp_path: Path) -> None:
    models = package("torchvision.models")
    path, own = tmp_path / "lightning.ckpt", models.resnet18(num_classes=3)
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in own.state_dict().items()}}, path)
    check(open_named("torchvision:resnet18", str(path), size=(64, 64)))
    head = {f"backbone.{key}": value for key, value in own.state_dict().items() if not key.startswith("fc")}
    torch.save(head | {"classifier.weight": own.fc.weight}, path)
    with pytest.raises(CheckpointError, match=r"does not fit torchvision's resnet18; missing: fc\.weight"):
        open_named("torchvision:resnet18", str(path), size=(64, 64))


def test_a_transformer_of_timm_takes_its_own_weights_at_another_size(tmp_path: Path) -> None:
    timm = package("timm")
    torch.manual_seed(0)
    own = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=1)
    torch.save({"model": own.state_dict(), "epoch": 3}, tmp_path / "vit.pth")
    weights = read_own_weights(str(tmp_path / "vit.pth"))
    assert set(weights.tensors) == set(own.state_dict())
    network = open_named("timm:test_vit", "random", size=(64, 64))
    assert network.graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value == 64

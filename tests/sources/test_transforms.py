from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.preprocess import IMAGENET, Preprocess, normalize, to_uint8
from rescompile.errors import UsageError
from rescompile.sources.transforms import hf_preprocess, timm_notes, timm_preprocess, transform_preprocess

MEAN, STD = IMAGENET.mean, IMAGENET.std
CFG = {
    "input_size": (3, 224, 224), "crop_pct": 0.95, "interpolation": "bicubic", "mean": MEAN, "std": STD,
    "crop_mode": "center", "test_input_size": (3, 288, 288), "test_crop_pct": 1.0,
}  # fmt: skip


def expected(resize: Any, crop: Any = 224, interpolation: Any = "bilinear") -> Preprocess:
    return Preprocess(resize=resize, crop=crop, interpolation=interpolation, mean=MEAN, std=STD, color="RGB")


def test_timm_rounds_the_resize_down() -> None:
    assert timm_preprocess(CFG) == expected(235, interpolation="bicubic")
    assert timm_preprocess(SimpleNamespace(**CFG)) == expected(235, interpolation="bicubic")
    assert timm_preprocess({**CFG, "crop_mode": "squash"}) == expected((235, 235), interpolation="bicubic")
    assert timm_preprocess({**CFG, "crop_mode": "border"}) is None
    assert timm_preprocess({**CFG, "input_size": (3, 224, 200)}) is None


def test_timm_says_the_size_of_its_tests() -> None:
    assert "--crop 288 --crop-pct 1.0" in timm_notes(CFG)[0]
    assert timm_notes({**CFG, "test_input_size": None}) == ()


def step(kind: str, **fields: Any) -> object:
    return type(kind, (), fields)()


def test_transforms_of_torchvision_are_read() -> None:
    normalization = step("Normalize", mean=MEAN, std=STD)
    tensor, resize, crop = step("ToTensor"), step("Resize", size=256), step("CenterCrop", size=(224, 224))
    bicubic = step("Resize", size=[232], interpolation=SimpleNamespace(value="bicubic"))
    squashed = step("Resize", size=(200, 220))

    def read(*steps: object) -> Preprocess:
        return transform_preprocess(step("Compose", transforms=list(steps)))

    assert read(resize, crop, tensor, normalization) == expected(256)
    assert read(bicubic, crop, tensor, normalization) == expected(232, interpolation="bicubic")
    assert read(squashed, tensor, normalization) == expected((200, 220), crop=(200, 220))
    preset = step("ImageClassification", resize_size=[232], crop_size=[224], mean=MEAN, std=STD)
    assert transform_preprocess(preset) == expected(232)
    for steps, said in (
        ((step("RandomCrop"), tensor, normalization), "step RandomCrop of the transform is not known"),
        ((resize, crop, tensor), "needs Normalize"),
        ((resize, tensor, normalization), "add a CenterCrop"),
        ((crop, resize, crop, normalization), "step CenterCrop"),
    ):
        with pytest.raises(UsageError, match=said):
            read(*steps)


@pytest.mark.parametrize(
    ("described", "wanted"),
    [
        (
            {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 224},
                "crop_pct": 0.875,
                "resample": 3,
            },
            expected(256, interpolation="bicubic"),
        ),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384}, expected((384, 384), crop=384)),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            expected(256),
        ),
        ({"size": {"height": 64, "width": 48}}, expected((64, 48), crop=(64, 48))),
        ({"size": {"shortest_edge": 256}}, None),
        ({"size": {"height": 64, "width": 64}, "rescale_factor": 1.0}, None),
    ],
)
def test_hugging_faces_processors_are_read(described: dict[str, Any], wanted: Preprocess | None) -> None:
    assert hf_preprocess({"image_mean": MEAN, "image_std": STD, **described}) == wanted


def photographs(real_data: Path) -> list[Path]:
    return sorted((real_data / "imagenet/validation/images").iterdir())[:20]


@pytest.mark.parametrize(
    "name", ["resnet50d.ra2_in1k", "resnet18.a1_in1k", "resnetv2_50x1_bit.goog_in21k_ft_in1k"]
)
def test_pixels_are_those_of_timms_own_transform(real_data: Path, name: str) -> None:
    timm = pytest.importorskip("timm", exc_type=Exception)
    cfg = timm.get_pretrained_cfg(name)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict()))
    preprocess = timm_preprocess(cfg)
    assert preprocess is not None
    for path in photographs(real_data):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        ours = normalize(to_uint8(image, preprocess)[None], preprocess)[0]
        levels = np.abs(ours - transform(image).numpy()) * np.array(preprocess.std)[:, None, None] * 255
        assert levels.max() <= 1 + 1e-3, path.name


def test_pixels_are_those_of_torchvisions_own_transform(real_data: Path) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=Exception)
    transform = models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    preprocess = transform_preprocess(transform)
    for path in photographs(real_data):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        ours = normalize(to_uint8(image, preprocess)[None], preprocess)[0]
        np.testing.assert_allclose(ours, transform(image).numpy(), atol=1e-5)

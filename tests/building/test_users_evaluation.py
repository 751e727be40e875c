"""No build ends "verified" while the user's own evaluation in PyTorch says something else.

The network, its wrapper, its head, the resizing, crop, colours and normalization of its images, and their labels are
drawn. The user's evaluation is this module's own code: it shares nothing with the product but the checkpoint and the
images. Users who forget the normalization know at least the accuracy of their network, and ask for it with
``--min-top1``: without that, a wrong mean that costs only some accuracy, and is not beaten by a usual one, cannot be
told from a network of that accuracy.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import rescompile
from calibration.errors import CalibrationError
from rescompile.config import BuildConfig, ModelConfig, PreprocessOptions
from rescompile.errors import RescompileError
from rescompile.report import Limits

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
Triple = tuple[float, float, float]
COUNT = 72
"""Images: enough to tell a top-1 of 95 % from any misreading, few enough for a build in a second."""
MOST_DISAGREEMENT = 1 - 0.995
"""The agreement that an fp32 engine owes, see ``rescompile.accuracy.limits``."""


class Block(nn.Module):
    """Two convolutions and a shortcut: the identity, or option B."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + skip)


class Net(nn.Module):
    """The user's CIFAR network of eight layers."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (before, after) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            setattr(self, f"layer{stage}", nn.Sequential(Block(before, after, 1 if stage == 1 else 2)))
        linear = nn.Linear(64, len(CLASSES), bias=head != "no bias")
        self.fc: nn.Module = nn.Sequential(nn.Dropout(0.2), linear) if head == "dropout" else linear

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = getattr(self, f"layer{stage}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Geometry:
    """The user's own way from a photograph to the pixels of the network."""

    crop: int | tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    color: Literal["RGB", "BGR"]

    @property
    def size(self) -> tuple[int, int]:
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    def __call__(self, photograph: np.ndarray) -> np.ndarray:
        image = Image.fromarray(photograph)
        resampling = Image.Resampling[self.interpolation.upper()]
        if isinstance(self.resize, tuple):
            image = image.resize(self.resize[::-1], resampling)
        elif self.resize:
            image = image.resize((int(self.resize * image.width / image.height), self.resize), resampling)
        height, width = self.size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        return pixels[..., ::-1] if self.color == "BGR" else pixels


@dataclass(frozen=True)
class World:
    """A user's network, images, labels and own evaluation."""

    net: Net
    other: Net
    """The raw weights beside averaged ones."""
    geometry: Geometry
    images: np.ndarray  # uint8 [N, 32, 40, 3]
    labels: np.ndarray  # [N]
    mean: Triple
    std: Triple

    def logits(self) -> np.ndarray:
        return evaluate(self.net, pixels_of(self.images, self.geometry), self.mean, self.std)


def pixels_of(images: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.stack([geometry(image) for image in images])


def normalized(pixels: np.ndarray, mean: Triple, std: Triple) -> Tensor:
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def evaluate(net: Net, pixels: np.ndarray, mean: Triple, std: Triple) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = net.eval()(normalized(pixels, mean, std)).numpy()
    return logits


def draw_geometry(random: np.random.Generator) -> Geometry:
    height, width = (int(side) for side in random.integers(16, 25, 2))
    return Geometry(
        crop=(height, width) if random.random() < 0.5 else height,
        resize=((26, 30), 27, 0)[int(random.integers(3))],
        interpolation=("nearest", "bilinear", "bicubic")[int(random.integers(3))],  # type: ignore[arg-type]
        color=("RGB", "BGR")[int(random.integers(2))],  # type: ignore[arg-type]
    )


def make_world(seed: int, head: str) -> World:
    """Random weights whose logits are spread over the classes, and labels of which 95 % are what the network says."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    # coloured images with blobs: what differs between images are colours and places, as in photographs
    coarse = random.uniform(0, 255, (COUNT, 4, 5, 3)) * 0.6 + random.uniform(0, 255, (COUNT, 1, 1, 3)) * 0.4
    images = np.stack(
        [np.asarray(Image.fromarray(tile.astype(np.uint8)).resize((40, 32))) for tile in coarse]
    )
    mean: Triple = tuple(random.uniform(0.3, 0.6, 3).round(3).tolist())
    std: Triple = tuple(random.uniform(0.15, 0.35, 3).round(3).tolist())
    geometry = draw_geometry(random)
    pixels = pixels_of(images, geometry)
    nets = [Net(head), Net(head)]
    for net in nets:
        _normalize_statistics(net, normalized(pixels, mean, std))
    logits = evaluate(nets[0], pixels, mean, std)
    labels = logits.argmax(1)
    wrong = random.random(COUNT) < 0.05
    labels = np.where(wrong, random.integers(0, len(CLASSES), COUNT), labels)
    return World(nets[0], nets[1], geometry, images, labels.astype(np.int64), mean, std)


def _normalize_statistics(net: Net, x: Tensor) -> None:
    """Running statistics of the images, and a classifier that uses all classes alike."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net.train()
    linear = net.fc[1] if isinstance(net.fc, nn.Sequential) else net.fc
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        net(x)
        net.eval()
        features: list[Tensor] = []
        hook = linear.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
        net(x)
        hook.remove()
        pooled = features[0]
        centred = pooled - pooled.mean(0)
        # directions of the features' own variation, so that each class is the answer to some images
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        weight = torch.randn(len(CLASSES), 5) @ axes[:5]
        weight -= weight.mean(0)
        linear.weight.copy_(4 * weight / (centred @ weight.T).std(0).unsqueeze(1))
        if linear.bias is not None:
            linear.bias.copy_(-(pooled.mean(0) @ linear.weight.T))
        else:
            direction = pooled.mean(0) / pooled.mean(0).norm()
            linear.weight -= torch.outer(linear.weight @ direction, direction)


# how the checkpoint is wrapped --------------------------------------------------------------------------------------


def save(world: World, wrapper: str, folder: Path) -> tuple[ModelConfig, dict[str, object]]:
    """The network in the user's file, and the options that name it."""
    state = world.net.state_dict()
    if wrapper in {"onnx", "onnx softmax"}:
        net: nn.Module = world.net if wrapper == "onnx" else nn.Sequential(world.net, nn.Softmax(1))
        path = folder / "net.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch prefers its other exporter
            torch.onnx.export(net.eval(), (torch.zeros(1, 3, *world.geometry.size),), path, dynamo=False, verbose=False,
                          input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}})  # fmt: skip
        return ModelConfig(onnx=path), {}
    payload: object = {
        "plain": state,
        "nested": {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        "lightning": {
            "state_dict": {**{f"model.{k}": v for k, v in state.items()}, "criterion.weight": torch.ones(6)},
            "hyper_parameters": {"lr": 0.1},
        },
        "timm ema": {"state_dict": world.other.state_dict(), "state_dict_ema": state},
        "torchvision ema": {
            "model": world.other.state_dict(),
            "model_ema": {"n_averaged": torch.tensor(9), **{f"module.{k}": v for k, v in state.items()}},
        },
        "akamaster": {
            k.replace("fc.", "linear.").replace("downsample", "shortcut"): v for k, v in state.items()
        },
    }[wrapper]
    torch.save(payload, folder / "net.pth")
    return ModelConfig(weights=str(folder / "net.pth")), {}


WRAPPERS = (
    "plain",
    "nested",
    "lightning",
    "timm ema",
    "torchvision ema",
    "akamaster",
    "onnx",
    "onnx softmax",
)


# how the labels are said ---------------------------------------------------------------------------------------------


def write_labels(world: World, form: str, folder: Path) -> tuple[Path, Path | None]:
    """The validation set, and the file of class names where the user has one."""
    names = folder / "classes.txt"
    names.write_text("\n".join(CLASSES))
    match form:
        case "npz" | "npz from 1" | "npz rotated":
            shift = {"npz": 0, "npz from 1": 1, "npz rotated": 1}[form]
            labels = world.labels + shift
            if form == "npz rotated":
                labels %= len(CLASSES)
            np.savez(folder / "val.npz", images=world.images, labels=labels)
            return folder / "val.npz", None
        case "folders":
            return _folders(world, folder, CLASSES), names
        case "folders in another order":
            # the network's class order is not the alphabet's, and --classes tells it
            order = ("fox", "cat", "ant", "elk", "dog", "bee")
            names.write_text("\n".join(order))
            return _folders(world, folder, order), names
        case "folders in another order, not told":
            return _folders(world, folder, ("fox", "cat", "ant", "elk", "dog", "bee")), None
        case "numbered folders":
            return _folders(world, folder, tuple(str(number) for number in range(len(CLASSES)))), None
        case _:
            assert form == "csv"
            return _csv(world, folder), None


def _folders(world: World, folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / "val" / name).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(world.images, world.labels, strict=True)):
        Image.fromarray(image).save(folder / "val" / names[label] / f"{index:03}.png")
    return folder / "val"


def _csv(world: World, folder: Path) -> Path:
    (folder / "val" / "images").mkdir(parents=True)
    table = io.StringIO("file, class_index\n")
    table.seek(0, io.SEEK_END)
    for index, (image, label) in enumerate(zip(world.images, world.labels, strict=True)):
        Image.fromarray(image).save(folder / "val" / "images" / f"{index:03}.png")
        table.write(f"{index:03}.png, {label}\n")
    (folder / "val" / "labels.csv").write_text("\ufeff" + table.getvalue(), encoding="utf-8")
    return folder / "val"


TOLD = ("npz", "folders", "folders in another order", "numbered folders", "csv")
"""Forms from which the classes can be known."""
MISTAKEN = ("npz from 1", "npz rotated", "folders in another order, not told")


def build_of(
    world: World,
    wrapper: str,
    labels: str,
    preprocess: PreprocessOptions,
    folder: Path,
    limits: Limits | None,
) -> rescompile.BuildReport | str:
    """The report of the build, or the sentence with which the product refuses."""
    model, _ = save(world, wrapper, folder)
    images, classes = write_labels(world, labels, folder)
    config = BuildConfig(
        model=ModelConfig(
            weights=model.weights, onnx=model.onnx, classes=classes, preprocess=preprocess
        ),
        precision="fp32", backend="openvino", validation_set=images, limits=limits, output=folder / "engine",
    )  # fmt: skip
    try:
        return rescompile.build(config)
    except (RescompileError, CalibrationError) as error:
        return str(error)


def disagreement(world: World, folder: Path, report: rescompile.BuildReport) -> float:
    """Share of the images on which the engine and the user's evaluation differ."""
    with rescompile.load(folder / "engine") as engine:
        found = np.concatenate([engine(engine.preprocess(image)) for image in world.images])
    return float((found.argmax(1) != world.logits().argmax(1)).mean())


@settings(
    max_examples=30, deadline=None, database=None, derandomize=True, phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    seed=st.integers(0, 10_000),
    head=st.sampled_from(("linear", "dropout")),
    wrapper=st.sampled_from(WRAPPERS),
    labels=st.sampled_from((*TOLD, *MISTAKEN)),
    said=st.sampled_from(("right", "0..255", "other colours", "forgotten")),
)
def test_verified_means_that_the_users_own_evaluation_agrees(
    tmp_path_factory: pytest.TempPathFactory, seed: int, head: str, wrapper: str, labels: str, said: str
) -> None:
    world, folder = make_world(seed, head), tmp_path_factory.mktemp("world")
    mean, std = world.mean, world.std
    own = float((world.logits().argmax(1) == world.labels).mean())
    assume(own > 0.85)
    asked = Limits(min_agreement=1 - MOST_DISAGREEMENT, max_relative_rms=1e-3, min_top1=own - 0.1)
    size = PreprocessOptions(
        crop=world.geometry.crop, resize=world.geometry.resize, interpolation=world.geometry.interpolation
    )
    color = world.geometry.color
    report: rescompile.BuildReport | str
    try:
        match said:
            case "right":
                preprocess = replace(size, mean=mean, std=std, color=color)
            case "other colours":
                other: Literal["RGB", "BGR"] = "RGB" if color == "BGR" else "BGR"
                preprocess = replace(size, mean=mean[::-1], std=std[::-1], color=other)
            case "0..255":
                large = (tuple(255 * value for value in values) for values in (mean, std))
                preprocess = replace(size, mean=next(large), std=next(large), color=color)
            case _:
                preprocess = size
        report = build_of(world, wrapper, labels, preprocess, folder, None if said == "right" else asked)
    except RescompileError as error:
        report = str(error)
    if isinstance(report, rescompile.BuildReport) and report:
        assert labels in TOLD, f"verified with labels that are {labels}"
        found = disagreement(world, folder, report)
        assert found <= MOST_DISAGREEMENT, f"verified while {found:.1%} of the answers differ"
        assert report.top1_reference == pytest.approx(own, abs=1 / COUNT)
    elif said == "right" and labels in TOLD:
        why = report if isinstance(report, str) else report.misfit or report.checks
        pytest.fail(f"refused, though everything was said rightly: {why}")

"""The example that puts an engine under a detector: with a small one of our own and, where it is, torchvision's."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rescompile.models.resnet import BasicBlock, ResNet
from rescompile.sources import module_export
from tests.test_docs import ROOT

WIDTHS = (8, 8, 16, 16)


class Body(ResNet):
    """The stages of a small ResNet, by the names that torchvision's FPN reads."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, (1, 1, 1, 1), classes=1, widths=WIDTHS)
        del self.fc

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.bn1(self.conv1(images)))
        found = {}
        for index in range(4):
            x = getattr(self, f"layer{index + 1}")(x)
            found[str(index)] = x
        return found


class Detector(nn.Module):
    """A box, a score and a class from each place of each stage: as torchvision's, without its post-processing."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"body": Body()})
        self.heads = nn.ModuleList(nn.Conv2d(width, 7, 1) for width in WIDTHS)
        for parameter in self.heads.parameters():
            nn.init.normal_(parameter)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        pixels = torch.from_numpy(EXAMPLE.normalized(torch.stack(images)))
        stages = self.backbone["body"](pixels)
        found = [head(stages[str(index)]).flatten(2) for index, head in enumerate(self.heads)]
        return [self._boxes(answer.T) for answer in torch.cat(found, 2)]

    @staticmethod
    def _boxes(answer: Tensor) -> dict[str, Tensor]:
        corner, sides = answer[:, :2], 5 + answer[:, 2:4].abs()
        return {
            "boxes": torch.cat([corner, corner + sides], 1),
            "scores": answer[:, 4].sigmoid(),
            "labels": answer[:, 5:].argmax(1),
        }


def _example() -> ModuleType:
    path = ROOT / "examples/faster_rcnn_backbone.py"
    spec = importlib.util.spec_from_file_location("faster_rcnn_backbone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXAMPLE = _example()


@pytest.fixture(autouse=True)
def quick_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_detector_over_an_engine_finds_what_it_found_before(precision: str) -> None:
    torch.manual_seed(0)
    detector = Detector().eval()
    int8 = precision == "int8"
    images, others = torch.rand(2, 3, 64, 64), torch.rand(16, 3, 64, 64)
    expected = EXAMPLE.detections(detector, images)
    count = sum(len(one["boxes"]) for one in expected)
    error = EXAMPLE.with_engine(detector, images, others if int8 else None, precision)
    assert isinstance(detector.backbone["body"], EXAMPLE.EngineBody)
    pairs = list(zip(expected, EXAMPLE.detections(detector, images), strict=True))
    again = sum(EXAMPLE.found_again(*pair) for pair in pairs)
    differences = [each for pair in pairs for each in EXAMPLE.score_differences(*pair)]
    if int8:
        assert 1e-3 < error < 0.05
        assert count > again > 0.5 * count
        assert len(differences) > 0.9 * count
        assert 0 < np.abs(differences).mean() < 0.02
    else:
        assert error < 1e-4
        assert again == len(differences) == count
    stages = detector.backbone["body"].engine.manifest.outputs
    assert [output.name for output in stages] == list(EXAMPLE.STAGES)


def test_detections_are_paired_by_class_box_score_and_mask() -> None:
    def one(**changes: list[object]) -> dict[str, Tensor]:
        plain = {"boxes": [[0.0, 0.0, 10.0, 10.0]], "scores": [0.9], "labels": [1]}
        return {name: torch.tensor(values) for name, values in (plain | changes).items()}

    assert EXAMPLE.found_again(one(), one(boxes=[[0.4, 0.0, 10.0, 9.6]], scores=[0.895])) == 1
    for changed in ({"boxes": [[0.6, 0.0, 10.0, 10.0]]}, {"scores": [0.88]}, {"labels": [2]}):
        assert EXAMPLE.found_again(one(), one(**changed)) == 0
    half, most = [[0.5] * 100], [[0.48] * 100]
    assert EXAMPLE.found_again(one(masks=half), one(masks=half)) == 1
    assert EXAMPLE.found_again(one(masks=half), one(masks=most)) == 0
    # two thirds of the area are shared: 6 of 9
    moved = one(boxes=[[0.0, 2.0, 10.0, 12.0]], scores=[0.7])
    assert EXAMPLE.intersection_over_union(one()["boxes"], moved["boxes"]).item() == pytest.approx(80 / 120)
    assert EXAMPLE.score_differences(one(), moved) == pytest.approx([0.2])
    assert EXAMPLE.score_differences(one(), one(boxes=[[0.0, 5.0, 10.0, 15.0]])) == []
    assert EXAMPLE.score_differences(one(), one(labels=[2])) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchvisions_detector_over_an_engine_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision", exc_type=Exception)
    monkeypatch.setattr(sys, "argv", ["example", "--precision", "fp32", "--size", "64", "--count", "1"])
    EXAMPLE.main()
    again, count = re.findall(r"^(\d+) of (\d+) detections are found again$", capsys.readouterr().out, re.M)[
        0
    ]
    assert again == count
    assert int(count) > 0

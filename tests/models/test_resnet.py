from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rescompile.models.form import BlockForm
from rescompile.models.random_weights import random_model
from rescompile.models.registry import create, find, with_options
from rescompile.models.resnet import BasicBlock, Bottleneck, Projection, ResNet


def on_meta(depth, classes=1000, **options):
    with torch.device("meta"):
        return create(with_options(find(depth=depth, name=None), **options), classes)


def macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and classifier for one image, counted on shapes alone."""
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, size, size, device="meta"))
    return total


# parameters and state_dict entries of torchvision's models, as its documentation and files give them
@pytest.mark.parametrize(
    ("depth", "parameters", "entries"),
    [
        (18, 11_689_512, 122),
        (34, 21_797_672, 218),
        (50, 25_557_032, 320),
        (101, 44_549_160, 626),
        (152, 60_192_808, 932),
    ],
)
def test_sizes_are_torchvisions(depth, parameters, entries):
    model = on_meta(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_names_and_their_order_are_torchvisions():
    names = [name for name in on_meta(50).state_dict() if name.endswith("weight") and "bn" not in name]
    assert names[:6] == [
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer1.0.conv2.weight",
        "layer1.0.conv3.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.weight",
    ]
    assert names[-2:] == ["layer4.2.conv3.weight", "fc.weight"]
    assert "layer1.0.downsample.0.weight" not in on_meta(18).state_dict()
    assert on_meta(18).state_dict()["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)


@pytest.mark.parametrize(
    ("depth", "stride_on", "gigamacs"),
    [(18, "3x3", 1.81), (50, "3x3", 4.09), (50, "1x1", 3.86), (101, "3x3", 7.80)],
)
def test_work_is_that_of_the_published_networks(depth, stride_on, gigamacs):
    assert macs(on_meta(depth, stride_on=stride_on), 224) / 1e9 == pytest.approx(gigamacs, abs=0.006)


@pytest.mark.parametrize(("stride_on", "strides"), [("3x3", [1, 2, 1]), ("1x1", [2, 1, 1])])
def test_the_stride_is_where_the_option_says(stride_on, strides):
    block = dict(on_meta(50, stride_on=stride_on).blocks())["layer2.0"]
    assert [conv.stride[0] for conv, _ in block.convs()] == strides
    assert block.downsample.conv.stride == (2, 2)


def test_an_exporter_can_walk_the_network():
    model = on_meta(101)
    assert [(name, len(stage)) for name, stage in model.stages()] == [
        ("layer1", 3), ("layer2", 4), ("layer3", 23), ("layer4", 3),
    ]  # fmt: skip
    assert model.maxpool is not None
    blocks = dict(model.blocks())
    assert list(blocks)[-1] == "layer4.2"
    assert blocks["layer3.22"].downsample is None
    assert isinstance(blocks["layer1.0"].downsample, Projection)
    assert [bn.num_features for _, bn in blocks["layer3.22"].convs()] == [256, 256, 1024]


def run_by_structure(model: ResNet, x: torch.Tensor) -> torch.Tensor:
    """Logits computed from ``blocks()`` and ``convs()`` alone, as the exporter walks them."""
    x = F.max_pool2d(F.relu(model.bn1(model.conv1(x))), 3, stride=2, padding=1)
    for _, block in model.blocks():
        y = x
        for index, (conv, bn) in enumerate(block.convs(), start=1):
            y = bn(conv(y))
            y = y if index == len(block.convs()) else y.relu()
        skip = x if block.downsample is None else block.downsample.bn(block.downsample.conv(x))
        x = (y + skip).relu()
    return x.mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias


@pytest.mark.parametrize(
    ("block", "stride_on"), [(BasicBlock, "3x3"), (Bottleneck, "3x3"), (Bottleneck, "1x1")]
)
def test_the_structure_is_the_forward_pass(block, stride_on):
    torch.manual_seed(0)
    form = BlockForm(stride_on=stride_on)
    model = ResNet(block, (1, 2, 1, 1), form, classes=5, widths=(8, 12, 16, 20)).eval()
    x = torch.randn(2, 3, 65, 47)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, run_by_structure(model, x))
    assert logits.shape == (2, 5)


def test_a_network_can_be_trained():
    model = ResNet(Bottleneck, (1, 1), widths=(4, 8), classes=3).train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_image_is_computed_on_its_own():
    model, _ = random_model(find(depth=None, name="resnet20-cifar"), 10, 0)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rescompile.models.registry import create, find, with_options
from rescompile.models.resnet import OptionA, Projection
from rescompile.sources.checkpoint import build_model, load_checkpoint, spec_of


def on_meta(name, **options):
    with torch.device("meta"):
        return create(with_options(find(depth=None, name=name), **options), 10)


# akamaster's table; 19.4 M for 1202
@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (56, 853_018), (1202, 19_421_274)],
)
def test_sizes_are_akamasters(depth, parameters):
    assert sum(p.numel() for p in on_meta(f"resnet{depth}-cifar").parameters()) == parameters


def test_stem_is_3x3_without_max_pool_and_stages_halve_the_image():
    model = on_meta("resnet20-cifar")
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    assert model.maxpool is None
    x = torch.empty(2, 3, 32, 32, device="meta")
    shapes = []
    for _, stage in model.stages():
        stage.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    assert model(x).shape == (2, 10)
    assert shapes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


@pytest.mark.parametrize(("planes", "size"), [(32, 32), (64, 16), (32, 7), (32, 1)])
def test_option_a_slices_and_pads_as_akamaster_does(planes, size):
    x = torch.randn(2, planes // 2, size, size)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
    shortcut = OptionA(planes // 2, planes, 2)
    assert torch.equal(shortcut(x), expected)
    assert (shortcut.stride, shortcut.pad_channels) == (2, (planes // 4, planes // 4))


def test_option_a_adds_no_parameters_and_option_b_adds_projections():
    a, b = on_meta("resnet20-cifar"), on_meta("resnet20-cifar", shortcut="B")
    assert [name for name, block in a.blocks() if isinstance(block.downsample, OptionA)] == [
        "layer2.0",
        "layer3.0",
    ]
    assert [name for name, block in b.blocks() if isinstance(block.downsample, Projection)] == [
        "layer2.0",
        "layer3.0",
    ]
    extra = set(b.state_dict()) - set(a.state_dict())
    assert {name.split(".")[2] for name in extra} == {"downsample"}
    assert b.state_dict()["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)


@pytest.mark.parametrize(("stride_on", "strides"), [("3x3", [1, 2, 1]), ("1x1", [2, 1, 1])])
def test_bottleneck_networks_end_in_256_channels(stride_on, strides):
    model = on_meta("resnet29-cifar-bottleneck", stride_on=stride_on)
    blocks = dict(model.blocks())
    assert len(blocks) == 9
    assert [blocks[f"layer{stage}.2"].convs()[-1][1].num_features for stage in (1, 2, 3)] == [64, 128, 256]
    projected = [name for name, block in blocks.items() if block.downsample is not None]
    assert projected == ["layer1.0", "layer2.0", "layer3.0"]
    assert [conv.stride[0] for conv, _ in blocks["layer2.0"].convs()] == strides
    assert model.fc.in_features == 256


@pytest.mark.parametrize(("file", "correct"), [("resnet20-12fca82f.th", 925), ("resnet56-4bfd9763.th", 931)])
def test_akamasters_weights_keep_their_accuracy(real_data, file, correct):
    """Counts on the first 1,000 test images; on all 10,000 they are 91.73 % and 93.39 %."""
    checkpoint = load_checkpoint(real_data / "weights" / file)
    spec = spec_of(checkpoint)
    assert (spec.name, spec.shortcut, checkpoint.classes) == (file.split("-")[0] + "-cifar", "A", 10)
    model = build_model(spec, checkpoint)
    with np.load(real_data / "cifar10" / "test.npz") as data:
        images, labels = data["images"][:1000], data["labels"][:1000]
    normalized = (images.astype(np.float32) / 255 - spec.preprocess.mean) / spec.preprocess.std
    x = torch.from_numpy(normalized.astype(np.float32).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        answers = torch.cat([model(part).argmax(1) for part in x.split(250)]).numpy()
    # one image may be so close to a tie that another CPU rounds it the other way
    assert (answers == labels).sum() == pytest.approx(correct, abs=1)

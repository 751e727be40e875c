from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from calibration.preprocess import CIFAR, IMAGENET
from rescompile.errors import UsageError
from rescompile.models.registry import KNOWN_NAMES, cifar_spec, create, find, untrained, with_options
from rescompile.models.resnet import Projection


@pytest.mark.parametrize(("depth", "adds"), [(18, 8), (34, 16), (50, 16), (101, 33), (152, 50)])
def test_imagenet_depths_and_their_residual_adds(depth, adds):
    spec = find(depth=depth, name=None)
    assert (spec.name, spec.family, spec.residual_adds) == (f"resnet{depth}", "imagenet", adds)
    assert spec == find(depth=None, name=f"resnet{depth}") == find(depth=depth, name=f"resnet{depth}")


@pytest.mark.parametrize("n", [1, 3, 5, 7, 9, 18, 200])
def test_cifar_depths_are_6n_plus_2_and_9n_plus_2(n):
    basic = find(depth=None, name=f"resnet{6 * n + 2}-cifar")
    bottleneck = find(depth=None, name=f"resnet{9 * n + 2}-cifar-bottleneck")
    assert basic.stages == bottleneck.stages == (n, n, n)
    assert basic.residual_adds == bottleneck.residual_adds == 3 * n
    assert (basic.block, basic.shortcut, bottleneck.block, bottleneck.shortcut) == (
        "basic",
        "A",
        "bottleneck",
        "B",
    )


def test_depth_counts_the_layers_that_learn():
    for name in KNOWN_NAMES:
        spec = find(depth=None, name=name)
        # the paper on wide ResNets counts three shortcuts, but not the classifier
        others = 4 if name.startswith("wrn") else 2
        assert spec.depth == others + sum(spec.stages) * (2 if spec.block == "basic" else 3)


@pytest.mark.parametrize(
    ("name", "block", "stages"),
    [
        ("resnet110-cifar-preact", "basic", 18),
        ("resnet164-cifar-preact", "bottleneck", 18),
        ("resnet1001-cifar-preact", "bottleneck", 111),
        ("resnet110-cifar-bottleneck-preact", "bottleneck", 12),
    ],
)
def test_pre_activation_networks_have_the_papers_blocks(name, block, stages):
    spec = find(depth=None, name=name)
    assert (spec.block, spec.stages, spec.pre_activation) == (block, (stages,) * 3, True)


def test_plain_networks_have_no_residual_adds():
    assert [find(depth=None, name=name).residual_adds for name in ("plain34", "plain56-cifar")] == [0, 0]


def test_family_decides_image_size_preprocessing_and_classes():
    imagenet, cifar = find(depth=50, name=None), find(depth=None, name="resnet56-cifar")
    assert (imagenet.image_size, imagenet.preprocess, imagenet.default_classes) == (224, IMAGENET, 1000)
    assert (cifar.image_size, cifar.preprocess, cifar.default_classes) == (32, CIFAR, 10)


@pytest.mark.parametrize(
    ("depth", "words"),
    [
        (56, "use --model resnet56-cifar or --model resnet56-cifar-bottleneck"),
        (44, "use --model resnet44-cifar$"),
        (164, "--model resnet164-cifar or --model resnet164-cifar-bottleneck"),
        (1001, "use --model resnet1001-cifar-bottleneck$"),
        (100, "no ResNet of depth 100. Did you mean '101'.*Known: resnet18"),
        (0, "no ResNet of depth 0.*Known"),
        (2, "no ResNet of depth 2.*Known"),
        (-7, "no ResNet of depth -7.*Known"),
    ],
)
def test_unknown_depth_says_what_there_is(depth, words):
    with pytest.raises(UsageError, match=words):
        find(depth=depth, name=None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51", "no ResNet of depth 51"),
        ("resnet56", "exists only for CIFAR: use --model resnet56-cifar"),
        ("resnet21-cifar", "6n\\+2 layers, such as resnet20-cifar or resnet26-cifar"),
        ("plain51", "no plain network of depth 51. Known"),
        ("plain56", "exists only for CIFAR: use --model plain56-cifar$"),
        ("plain20-cifar-preact", "no model"),
        ("plain29-cifar-bottleneck", "no model"),
        ("plain21-cifar", "such as plain20-cifar or plain26-cifar"),
        (
            "resnet164-preact",
            "use --model resnet164-cifar-preact or --model resnet164-cifar-bottleneck-preact",
        ),
        (
            "resnet20-preact",
            "exists only for CIFAR: use --model resnet20-cifar-preact or",
        ),
        ("wrn-28", "no model 'wrn-28'"),
        ("wrn-27-10", "6n\\+4 layers, such as wrn-22-10 or wrn-28-10"),
        ("resnet2-cifar", "such as resnet8-cifar or resnet14-cifar"),
        (
            "resnet57-cifar-bottleneck",
            "9n\\+2 layers, such as resnet56-cifar-bottleneck or resnet65-cifar-bottleneck",
        ),
        ("ResNet101", "no model 'ResNet101'. Did you mean 'resnet101'"),
        ("resnet_50", "Did you mean 'resnet50'"),
        ("resnet50-bottleneck", "no model 'resnet50-bottleneck'"),
        ("resnet020-cifar", "no model"),
        ("resnet" + "9" * 6000 + "-cifar", "no model"),
        ("vgg16", "no model 'vgg16'. Known: resnet18, .*any other CIFAR depth"),
        ("", "no model ''"),
        ("resnet50\n", "no model"),
    ],
)
def test_unknown_name_says_what_there_is(name, words):
    with pytest.raises(UsageError, match=words):
        find(depth=None, name=name)


def test_nothing_named_and_contradiction():
    with pytest.raises(UsageError, match=r"no network was named: pass --depth 101, --model"):
        find(depth=None, name=None)
    with pytest.raises(UsageError, match=r"--model resnet50 has 50 layers, but --depth 101 was asked"):
        find(depth=101, name="resnet50")


def test_options_change_only_what_was_asked():
    spec = find(depth=None, name="resnet20-cifar")
    assert with_options(spec) == spec
    assert with_options(spec, shortcut="B").shortcut == "B"
    assert with_options(find(depth=50, name=None), stride_on="1x1").stride_on == "1x1"
    assert not with_options(spec).shortcut_asked
    assert with_options(with_options(spec, shortcut="A"), stride_on="3x3").shortcut_asked


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet50", {"shortcut": "A"}, "resnet50 has no shortcut option A"),
        ("resnet20-cifar-bottleneck", {"shortcut": "A"}, "has no shortcut option A"),
        ("resnet18", {"stride_on": "1x1"}, "resnet18 has no 1x1 convolution for the stride"),
        ("resnet20-cifar", {"stride_on": "1x1"}, "no 1x1 convolution"),
        ("resnet20-cifar", {"shortcut": "D"}, "'D' is not a shortcut option: choose A"),
        ("plain20-cifar", {"shortcut": "A"}, "plain20-cifar has no shortcuts"),
        ("resnet50", {"stride_on": "5x5"}, "cannot be on '5x5'"),
    ],
)
def test_options_that_a_network_does_not_have_are_refused(name, options, words):
    with pytest.raises(UsageError, match=words):
        with_options(find(depth=None, name=name), **options)


def test_a_network_has_at_least_one_class():
    assert create(cifar_spec(8, "basic"), 1).fc.out_features == 1
    with pytest.raises(UsageError, match="at least one class, not 0"):
        create(cifar_spec(8, "basic"), 0)


def test_untrained_networks_begin_in_train_mode_with_the_papers_variance():
    torch.manual_seed(0)
    model = untrained("resnet20-cifar", 10, shortcut="C")
    assert all(module.training for module in model.modules())
    assert all(isinstance(block.downsample, Projection) for _, block in model.blocks())
    weight = model.layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert model.bn1.weight.unique().tolist() == [1.0]
    torch.manual_seed(0)
    assert torch.equal(untrained("resnet20-cifar", 10, shortcut="C").conv1.weight, model.conv1.weight)


def test_created_networks_are_in_eval_mode():
    assert not any(module.training for module in create(cifar_spec(8, "basic"), 10).modules())


def test_the_registry_needs_no_torch():
    code = "import sys, rescompile.models.registry, rescompile.sources.pretrained; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

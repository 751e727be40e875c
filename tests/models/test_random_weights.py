from __future__ import annotations

import pytest
import torch

from rescompile.errors import UsageError
from rescompile.models.random_weights import random_model, weights_sha256
from rescompile.models.registry import find, with_options

RESNET8 = find(depth=None, name="resnet8-cifar")
PINNED = "1ad0fd56ac21d105330114188cf15ba1220761f94831ce596969873326b049c4"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet152", {}),
        ("resnet50", {"stride_on": "1x1"}),
        ("resnet8-cifar", {}),
        ("resnet20-cifar", {"shortcut": "B"}),
        ("resnet1202-cifar", {}),
        ("resnet164-cifar-bottleneck", {}),
        ("plain34", {}),
        ("plain56-cifar", {}),
        ("resnext50_32x4d", {}),
        ("resnet110-cifar-preact", {}),
        ("resnet29-cifar-bottleneck-preact", {"shortcut": "C"}),
        ("wrn-16-2", {}),
    ],
)
def test_logits_neither_explode_nor_vanish(name, options):
    spec = with_options(find(depth=None, name=name), **options)
    model, _ = random_model(spec, spec.default_classes, seed=0)
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, spec.image_size, spec.image_size))
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 50


@pytest.mark.parametrize("seed", range(3))
def test_small_networks_are_tame_for_every_seed(seed):
    model, _ = random_model(RESNET8, 10, seed)
    with torch.inference_mode():
        assert 0.1 < model(torch.randn(2, 3, 32, 32)).std() < 50


def test_a_seed_decides_every_bit():
    first, digest = random_model(RESNET8, 10, seed=3)
    torch.manual_seed(99)
    second, again = random_model(RESNET8, 10, seed=3)
    assert digest == again == weights_sha256(second.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    others = [random_model(RESNET8, 10, 4)[1], random_model(RESNET8, 11, 3)[1]]
    assert len({digest, *others}) == 3


def test_the_bits_are_the_same_on_every_machine():
    assert random_model(RESNET8, 10, seed=0)[1] == PINNED


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(5)
    random_model(RESNET8, 10, seed=0)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_hash_covers_names_shapes_and_values():
    base = {"a": torch.ones(2, 3)}
    variants = [{"b": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}, {"a": torch.ones(2, 3) * 2}]
    assert len({weights_sha256(state) for state in [base, *variants]}) == 4


def test_batch_norms_are_plausible_and_the_last_one_is_small():
    model, _ = random_model(find(depth=None, name="resnet110-cifar"), 10, 0)
    for _, block in model.blocks():
        (_, first), (_, last) = block.convs()
        assert 0.5 <= first.weight.min() <= first.weight.max() <= 1.5
        assert last.weight.max() <= 1.5 / 54**0.5
        assert last.running_var.min() >= 0.5
        assert last.running_mean.std() > 0.01
        assert last.num_batches_tracked == 0


def test_negative_seeds_and_no_classes_are_refused():
    with pytest.raises(UsageError, match=r"seed cannot be negative \(-1\)"):
        random_model(RESNET8, 10, seed=-1)
    with pytest.raises(UsageError, match="at least one class"):
        random_model(RESNET8, 0, seed=0)

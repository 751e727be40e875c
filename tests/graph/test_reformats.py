"""Type changes of activations, counted on the graph."""

from __future__ import annotations

import itertools

import pytest

from rescompile.graph.half import half
from rescompile.graph.reformats import predicted_reformats, reformats
from rescompile.graph.shared.topology import block_outputs
from tests.graph.conftest import folded, int8
from tests.graph.test_restore import mixed


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20-cifar"])
def test_an_int8_network_has_one_at_its_input_and_a_float_network_none(name: str) -> None:
    assert reformats(int8(name)) == reformats(half(int8(name))) == 1
    assert reformats(folded(name)) == reformats(mixed(name, *block_outputs(folded(name)))) == 0


@pytest.mark.parametrize(
    ("blocks", "count"),
    [
        (("layer2.0",), 3),
        (("layer2.0", "layer2.1"), 3),
        (("layer1.1", "layer2.1"), 5),
        (("stem",), 1),
        (("stem", "layer1.0"), 1),
        (("fc",), 2),
        (("layer4.1",), 3),
        (("layer4.1", "fc"), 2),
    ],
)
def test_every_run_of_float_blocks_adds_its_two_ends(blocks: tuple[str, ...], count: int) -> None:
    assert reformats(mixed("resnet18", *blocks)) == count


def test_for_any_choice_of_blocks_it_is_the_number_of_changes_along_the_network() -> None:
    names = list(block_outputs(folded("resnet8-cifar", "A")))
    for chosen in itertools.product((True, False), repeat=len(names)):
        blocks = [name for name, floating in zip(names, chosen, strict=True) if floating]
        assert reformats(mixed("resnet8-cifar", *blocks, shortcut="A")) == predicted_reformats(
            names, blocks
        ), blocks

"""Networks without fused kernels are refused before calibration, with all reasons at once."""

from __future__ import annotations

import pytest

from rescompile.backends.triton.refusal import reasons_against
from rescompile.graph.fold import fold
from rescompile.graph.simplify import simplify
from rescompile.graph.structure import structure
from tests.graph.conftest import folded
from tests.graph.variants import variant


def reasons(name: str) -> tuple[str, ...]:
    return reasons_against(structure(fold(simplify(variant(name)[1]).graph))[0])


@pytest.mark.parametrize(
    ("name", "shortcut"), [("resnet18", None), ("resnet20-cifar", "A"), ("resnet50", None)]
)
def test_our_own_networks_have_kernels(name: str, shortcut: str | None) -> None:
    assert reasons_against(folded(name, shortcut)) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnext", ("2 x grouped convolution",)),
        ("dilated", ("dilated convolution",)),
        ("two-heads", ("2 outputs",)),
        ("mlp-head", ("linear layer in front of the last one",)),
        ("resnet-d", ("max pool that does not follow the first convolution", "AveragePool")),
        ("grey", ()),
    ],
)
def test_each_reason_is_named_once(name: str, expected: tuple[str, ...]) -> None:
    assert reasons(name) == expected

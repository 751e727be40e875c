"""Chains replace exactly the launches that they save, and change no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rescompile.backends.triton.lowering.chains import with_chains
from rescompile.backends.triton.lowering.network import Network, lower
from rescompile.backends.triton.step_executor import StepExecutor
from rescompile.backends.triton.steps import Chain, reads, writes
from tests.backends.triton.networks import FULL_RANGE, SIDES, deployable, floats, network


def answers(made: Network, name: str) -> torch.Tensor:
    walk = StepExecutor(made.steps, {key: torch.tensor(values) for key, values in made.weights.items()})
    return walk(torch.from_numpy(floats(name, 2)))


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize("name", [name for name in SIDES if not name.startswith(("cifar", "basic"))])
def test_answers_stay_the_same_to_the_bit(name: str, precision: Any) -> None:
    plain = lower(deployable(name, precision), (SIDES[name], SIDES[name]))
    chained = with_chains(plain)
    assert len(chained.steps) < len(plain.steps)
    assert torch.equal(answers(plain, name), answers(chained, name))


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("bottleneck", ["layer1.1.conv1", "layer2.0.conv1", None]),
        ("stride on 1x1", [None, None]),  # a first convolution with a stride reads other pixels
    ],
)
def test_a_chain_runs_the_next_first_convolution_where_it_reads_the_same_pixels(
    name: str, following: list[str | None]
) -> None:
    chains = [step for step in network(name, "int8").steps if isinstance(step, Chain)]
    assert [chain.conv1 for chain in chains] == following
    assert [chain.stride for chain in chains][-1] == (2 if name == "bottleneck" else 1)


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck, full range"])
def test_a_chain_says_which_of_its_convolutions_saturate(name: str) -> None:
    chains = [step for step in network(name, "int8").steps if isinstance(step, Chain)]
    bare = [
        ("layer1.0.conv2", "layer1.0.conv3", "layer1.1.conv1"),
        ("layer1.1.conv2", "layer1.1.conv3", "layer2.0.conv1"),
        ("layer2.0.conv2",),
    ]
    full_range = name.endswith(FULL_RANGE)
    assert [chain.without_relu for chain in chains] == (bare if full_range else [()] * 3)
    assert [chain.zero_sums for chain in chains] == [full_range] * 3


@pytest.mark.parametrize(("name", "precision"), [("basic", "int8"), ("bottleneck", "fp32")])
def test_networks_that_no_chain_fits_stay_as_they_are(name: str, precision: Any) -> None:
    plain = lower(deployable(name, precision), (SIDES[name], SIDES[name]))
    assert with_chains(plain).steps == plain.steps


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("name", SIDES)
def test_every_step_reads_what_earlier_ones_wrote(name: str, precision: Any) -> None:
    written: set[str] = set()
    for step in network(name, precision).steps:
        assert set(reads(step)) <= written, step.name
        assert not set(writes(step)) & written, step.name
        written |= set(writes(step))

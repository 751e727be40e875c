"""Layers, arithmetic and floors are read off the networks themselves."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.launches import floor_ms, flops_of, network_launches
from benchmarks.gpu.layers import distinct_layers
from benchmarks.gpu.networks import FULL, flops
from fused_kernels.ops.convolution import makes_dy


def test_resnet50_is_read_off_the_network() -> None:
    layers = distinct_layers(FULL)
    assert sum(layer.count for layer in layers) == 52
    assert sum(layer.count for layer in layers if layer.role == "projection") == 4
    stem = 2.0 * 112 * 112 * 64 * 147
    classifier = 2.0 * 2048 * 1000
    assert sum(layer.count * layer.flops(1) for layer in layers) == flops(FULL, 1) - stem - classifier
    assert flops(FULL, 1) / 2e9 == pytest.approx(4.089, abs=1e-3)


def test_a_block_launches_three_times_the_arithmetic_of_its_convolutions() -> None:
    launches = network_launches(FULL, 4, torch.bfloat16, training=True, part="layer2.0")
    layers = {layer.name: layer for layer in distinct_layers(FULL) if layer.name.startswith("layer2.0")}
    assert len(layers) == 4
    assert sum(map(flops_of, launches)) == pytest.approx(3 * sum(layer.flops(4) for layer in layers.values()))


def test_the_floor_is_the_sum_of_what_binds_each_launch() -> None:
    launches = network_launches(FULL, 4, torch.float16, training=False, part="layer1.1")
    memory_bound = Ceilings(1e12, 1e30, 1e30, None, ())
    arithmetic_bound = Ceilings(1e30, 1e12, 1e12, None, ())
    assert floor_ms(launches, arithmetic_bound) == pytest.approx(1e-9 * sum(map(flops_of, launches)))
    assert floor_ms(launches, memory_bound) > 1e-9 * 3 * 4 * 256 * 56 * 56 * 2


def test_a_training_step_of_resnet50_has_at_most_300_launches() -> None:
    launches = Counter(launch.kernel for launch in network_launches(FULL, 256, torch.bfloat16, training=True))
    assert launches.total() <= 300
    convolutions, blocks, projections = 52, 16, 4
    joined = convolutions - projections  # a projection's batch norm goes with that of the block's last layer
    assert launches.pop("conv.conv_kernel") == 2 * convolutions + 1  # and the stem's
    assert launches.pop("wgrad.wgrad_kernel") == convolutions
    makes_its_own = sum(
        layer.count for layer in distinct_layers(FULL) if makes_dy(layer.conv, layer.c, torch.bfloat16)
    )
    assert launches.pop("passes.bn_backward_kernel") == convolutions - makes_its_own
    assert launches.pop("statistics.finalize_kernel") == joined + 1
    assert launches.pop("statistics.norm_gradients_kernel") == joined + 1
    assert (
        launches.pop("statistics.merge_kernel") == launches.pop("statistics.sums_kernel") == 1
    )  # the stem's
    assert launches.pop("passes.join_kernel") == blocks
    assert launches.pop("wgrad.split_sum_kernel") == 2  # of the first block and of the stem
    assert launches.total() == 6, "the stem's passes and the entry"

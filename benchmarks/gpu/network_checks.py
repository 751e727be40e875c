"""Whole networks against float64: one training step's loss, gradients and statistics, and the answers of inference."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.correctness import SLACK, TIMES, cudnn_heuristics, distance, judged
from benchmarks.gpu.int8_network import Int8Network
from benchmarks.gpu.networks import folded, fused, images, labels, plain, settle
from benchmarks.gpu.workloads import Setting, block_input, network_for
from fused_kernels.blocks.inference import without_chains
from fused_kernels.launch import implementation

SINGLE = 2.0
"""Multiple of the rule that a single gradient may reach, because the errors of small tensors scatter."""
INT8_AGREEMENT = 0.9
"""Least cosine between int8 logits and those of fp32, with scales that are not calibrated."""
INT8_REPEATED = 0.999
"""Least cosine between int8 logits of kernels and references: a step here and there may differ on a GPU."""


def check_training(setting: Setting, batch: int) -> dict[str, Any]:
    """One step's logits, gradients and running statistics in the training dtype, twice."""
    source = plain(setting.scale, setting.device)
    network = fused(setting.scale, source)
    ours, again = (_trained(network, setting, batch) for _ in range(2))
    repeatable = all(torch.equal(ours[name], again[name]) for name in ours)
    del again
    with cudnn_heuristics():
        torchs = _trained(source, setting, batch)
        truth = _trained(source.double(), replace(setting, training_dtype=torch.float64), batch)
    groups = [_grouped(results, truth) for results in (ours, torchs, truth)]
    verdict = judged(*groups)
    single = _worst_single(ours, torchs, truth)
    correct = verdict["correct"] and repeatable and single["ratio"] <= SINGLE
    return verdict | {"correct": correct, "repeatable": repeatable, "worst_tensor": single}


def _trained(network: nn.Module, setting: Setting, batch: int) -> dict[str, Tensor]:
    """Everything that one step of a copy of ``network`` leaves behind, by name."""
    network = copy.deepcopy(network)
    x, y = images(setting.scale, batch, setting.device), labels(setting.scale, batch, setting.device)
    if setting.training_dtype == torch.float64:
        logits = network(x.double())
    else:
        with torch.autocast(setting.device.type, dtype=setting.training_dtype):
            logits = network(x)
    torch.autograd.backward(F.cross_entropy(logits.double(), y))
    found = {"logits": logits.detach()}
    found |= {f"d {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | {name: b for name, b in network.named_buffers() if "running" in name}


def check_block(setting: Setting, part: str, batch: int) -> dict[str, Any]:
    """Output and gradients of one block or stage in the training dtype, twice."""
    source = plain(setting.scale, setting.device)
    network = fused(setting.scale, source)
    x = block_input(setting, part, batch, setting.training_dtype)
    ours, again = (_passed(network.get_submodule(part), x, setting) for _ in range(2))
    repeatable = all(torch.equal(ours[name], again[name]) for name in ours)
    with cudnn_heuristics():
        torchs = _passed(source.get_submodule(part), x, setting)
        wide = replace(setting, training_dtype=torch.float64)
        truth = _passed(source.double().get_submodule(part), x.double(), wide)
    verdict = judged(*(_grouped(results, truth) for results in (ours, torchs, truth)))
    single = _worst_single(ours, torchs, truth)
    correct = verdict["correct"] and repeatable and single["ratio"] <= SINGLE
    return verdict | {"correct": correct, "repeatable": repeatable, "worst_tensor": single}


def _passed(block: nn.Module, x: Tensor, setting: Setting) -> dict[str, Tensor]:
    """Result and gradients of a copy of ``block``."""
    block, x = copy.deepcopy(block), x.detach().clone().requires_grad_()
    if setting.training_dtype == torch.float64:
        out = block(x)
    else:
        with torch.autocast(setting.device.type, dtype=setting.training_dtype):
            out = block(x)
    torch.manual_seed(4)
    gradient = torch.randn(out.shape, device=out.device).contiguous(memory_format=torch.channels_last)
    out.backward(gradient.to(setting.training_dtype if out.dtype != torch.float64 else torch.float64))
    found = {"output": out.detach(), "d x": x.grad}
    found |= {f"d {name}": p.grad for name, p in block.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _grouped(results: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Results, all gradients and all statistics, every tensor weighed by its true norm."""
    groups: dict[str, list[Tensor]] = {}
    for name, expected in truth.items():
        group = "gradients" if name.startswith("d ") else "statistics" if "running" in name else name
        size = expected.double().norm().clamp(min=1e-30)
        groups.setdefault(group, []).append((results[name].double() / size).flatten())
    return {name: torch.cat(tensors) for name, tensors in groups.items()}


def _worst_single(
    ours: Mapping[str, Tensor], torchs: Mapping[str, Tensor], truth: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The tensor whose error is largest beside what is allowed."""
    ratios = {
        name: distance(ours[name], expected) / (TIMES * distance(torchs[name], expected) + SLACK)
        for name, expected in truth.items()
    }
    name = max(ratios, key=lambda key: ratios[key])
    return {
        "name": name,
        "ratio": ratios[name],
        "beyond_the_rule": sum(ratio > 1 for ratio in ratios.values()),
    }


@torch.no_grad()
def check_inference(setting: Setting, batch: int) -> dict[str, dict[str, Any]]:
    """Logits in 16 bits, with and without chains, and in int8; by name."""
    source = settle(plain(setting.scale, setting.device), images(setting.scale, 8, setting.device))
    x = images(setting.scale, batch, setting.device)
    truth = {"logits": copy.deepcopy(source).double()(x.double())}
    network = network_for(setting, "ours", training=False).eval()
    plain_folded = folded(source)
    narrow = copy.deepcopy(plain_folded).to(setting.inference_dtype)
    torchs = {"logits": narrow(x.to(setting.inference_dtype))}
    found = {}
    for name, context in (("chains", nullcontext), ("no chains", without_chains)):
        with context(), torch.autocast(setting.device.type, dtype=setting.inference_dtype):
            ours, again = network(x), network(x)
        repeatable = torch.equal(ours, again)
        verdict = judged({"logits": ours}, torchs, truth)
        found[name] = verdict | {"repeatable": repeatable, "correct": verdict["correct"] and repeatable}
    found["int8"] = _check_int8(plain_folded, x, truth["logits"])
    return found


def _check_int8(network: Any, x: Tensor, truth: Tensor) -> dict[str, Any]:
    quantized = Int8Network(network, x)
    image = quantized.image(x)
    ours, again = quantized(image), quantized(image)
    with implementation("reference"):
        expected = quantized(image)
    exact = F.cosine_similarity(ours, expected).min().item()
    close = F.cosine_similarity(ours.double(), truth.double()).min().item()
    same_class = (ours.argmax(1) == truth.argmax(1)).double().mean().item()
    repeatable = torch.equal(ours, again)
    return {
        "correct": repeatable and exact >= INT8_REPEATED and close >= INT8_AGREEMENT,
        "repeatable": repeatable,
        "results": {
            "logits beside the reference": {"error": 1 - exact, "allowed": 1 - INT8_REPEATED},
            "logits beside fp32": {"error": 1 - close, "allowed": 1 - INT8_AGREEMENT},
        },
        "same_class_as_fp32": same_class,
    }

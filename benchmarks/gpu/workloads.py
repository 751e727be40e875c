"""The steps that are timed, the same for every implementation: whole networks and single blocks.

A peer process builds the same step as the main process, from the same seeds, so that only the implementation differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.networks import Scale, folded, fused, images, labels, plain, settle, without_values

Kind = Literal["train", "infer", "block"]
Implementation = Literal["ours", "eager", "compiled"]
COMPILE_MODE = "max-autotune-no-cudagraphs"
"""Without its own CUDA graphs, because ours is captured around the whole step, forward and backward."""
INFERENCE_BATCH_OF_BLOCKS = 128
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Workload:
    """One thing to time."""

    kind: Kind
    batch: int
    part: str = ""
    """The block or stage of kind ``block``, such as ``layer1.1``."""

    @property
    def name(self) -> str:
        """A file's name, too."""
        part = f"-{self.part}" if self.part else ""
        return f"{self.kind}{part}-b{self.batch}"


@dataclass(frozen=True)
class Setting:
    """Device, network and dtypes of a run."""

    device: torch.device
    scale: Scale
    training_dtype: torch.dtype = torch.bfloat16
    inference_dtype: torch.dtype = torch.float16


@dataclass(frozen=True)
class Programs:
    """A workload made ready by one implementation."""

    steps: Mapping[str, Callable[[], Any]]
    """Functions without arguments, by name; ``step``, or for a block ``forward``, ``both`` and ``inference``."""
    answer: Callable[[], Tensor]
    """A number or a few that every implementation must agree on."""


def programs(workload: Workload, setting: Setting, implementation: Implementation) -> Programs:
    """The steps of ``workload``; compilation happens when they first run."""
    makers = {"train": _train, "infer": _infer, "block": _block}
    return makers[workload.kind](workload, setting, implementation)


def network_for(setting: Setting, implementation: Implementation, *, training: bool) -> nn.Module:
    """The network in channels_last, for training in fp32 and for inference in 16 bits.

    Ours folds its batch norms itself, from fp32, so it stays in fp32 and runs under autocast. What is compiled is
    folded beforehand, as a careful user would; eager keeps its batch norms.
    """
    source = plain(setting.scale, setting.device)
    if training:
        return fused(setting.scale, source) if implementation == "ours" else source
    settle(source, images(setting.scale, 8, setting.device))
    if implementation == "ours":
        network = fused(setting.scale, source)
        network.fc.to(setting.inference_dtype)
        return network
    if implementation == "compiled":
        source = folded(source)
    return source.to(setting.inference_dtype)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` at its best."""
    return torch.compile(function, mode=COMPILE_MODE)


def _maybe_compiled(
    function: Callable[..., Any], setting: Setting, implementation: Implementation
) -> Callable[..., Any]:
    return compiled(function) if implementation == "compiled" and setting.device.type == "cuda" else function


def _inference(network: nn.Module, setting: Setting, implementation: Implementation) -> Callable[..., Any]:
    network = network.eval().requires_grad_(False)
    if implementation != "ours":
        return _maybe_compiled(network, setting, implementation)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(setting.device.type, dtype=setting.inference_dtype):
            return cast(Tensor, network(x))

    return forward


def _train(workload: Workload, setting: Setting, implementation: Implementation) -> Programs:
    network = network_for(setting, implementation, training=True)
    x, y = (
        images(setting.scale, workload.batch, setting.device),
        labels(setting.scale, workload.batch, setting.device),
    )
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=LEARNING_RATE,
        momentum=0.9,
        weight_decay=1e-4,
        fused=setting.device.type == "cuda",
    )

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(setting.device.type, dtype=setting.training_dtype):
            return F.cross_entropy(network(x), y)

    forward = _maybe_compiled(loss_of, setting, implementation)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, y)
        loss.backward()
        optimizer.step()
        return cast(Tensor, loss.detach())

    return Programs({"step": step}, step)


def _infer(workload: Workload, setting: Setting, implementation: Implementation) -> Programs:
    network = network_for(setting, implementation, training=False)
    x = images(setting.scale, workload.batch, setting.device, setting.inference_dtype)
    forward = _inference(network, setting, implementation)

    @torch.no_grad()
    def step() -> Tensor:
        return cast(Tensor, forward(x))

    return Programs({"step": step}, lambda: step().float().norm())


def _block(workload: Workload, setting: Setting, implementation: Implementation) -> Programs:
    train, infer = (
        network_for(setting, implementation, training=mode).get_submodule(workload.part)
        for mode in (True, False)
    )
    x = block_input(setting, workload.part, workload.batch, setting.training_dtype).requires_grad_()
    fewer = min(workload.batch, INFERENCE_BATCH_OF_BLOCKS)
    narrow = block_input(setting, workload.part, fewer, setting.inference_dtype)
    parameters = [x, *train.parameters()]

    def forward_of(x: Tensor) -> Tensor:
        with torch.autocast(setting.device.type, dtype=setting.training_dtype):
            return cast(Tensor, train(x))

    forward = _maybe_compiled(forward_of, setting, implementation)
    inference = _inference(infer, setting, implementation)
    with torch.no_grad():
        dz = torch.randn_like(forward_of(x))

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(x), parameters, dz)

    @torch.no_grad()
    def folded_forward() -> Tensor:
        return cast(Tensor, inference(narrow))

    steps = {"forward": lambda: forward(x), "both": both, "inference": folded_forward}
    return Programs(steps, lambda: both()[0].float().norm())


def block_input(setting: Setting, part: str, batch: int, dtype: torch.dtype) -> Tensor:
    """A seeded activation that a block or stage takes, in NHWC memory."""
    c, h = input_of(setting.scale, part)
    torch.manual_seed(3)
    x = torch.randn(batch, h, h, c, device=setting.device).relu_()
    return x.to(dtype).permute(0, 3, 1, 2)


def parts_of(scale: Scale) -> list[str]:
    """Names of the stages and blocks; single layers are not fused alone."""
    return [name for name in _inputs(scale) if name.count(".") < 2]


def input_of(scale: Scale, part: str) -> tuple[int, int]:
    """Channels and height of what a block or stage takes."""
    return _inputs(scale)[part]


@cache
def _inputs(scale: Scale) -> dict[str, tuple[int, int]]:
    network = without_values(scale).eval()
    found: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = inputs[0].shape[1], inputs[0].shape[2]

        return hook

    for name, module in network.named_modules():
        if name.startswith("layer"):
            module.register_forward_pre_hook(note(name))
    network(torch.empty(1, 3, scale.image, scale.image, device="meta"))
    return found

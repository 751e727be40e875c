"""Replace a model's residual blocks by fused ones, and say what was replaced, what was left, and why.

Blocks are known by their structure (torchvision's, timm's and our own share the names conv1, bn1, …, downsample), and
then checked: both forms must answer alike on random input, so that a block with a forward pass of its own is left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from fused_kernels.errors import Unsupported
from fused_kernels.launch import implementation
from fused_kernels.modules.block import FusedBasicBlock, FusedBlock, FusedBottleneck
from fused_kernels.modules.norm import is_norm
from fused_kernels.modules.shortcut import PadShortcut
from fused_kernels.modules.stage import FusedStage

OUTSIDE = "a convolution outside of a residual block"
STEM = "; fused_kernels.modules.FusedResNet.adopt(model) takes a whole ResNet, stem and classifier too"
HARMLESS = (nn.Identity, nn.ReLU)
"""Children that a fused block may leave out: it applies its ReLUs itself."""
TOLERANCE = 1e-4
"""Relative L2 difference between a block and its fused form, in fp32."""
PROBE = 6
"""Height and width of the random input that a replacement is checked with."""


@dataclass
class FuseReport:
    """What ``fuse`` did; prints as one line a module."""

    replaced: list[str] = field(default_factory=list)
    """Names of modules that are fused now."""
    left: dict[str, str] = field(default_factory=dict)
    """Names of modules with convolutions that were left, with the reason."""

    def __str__(self) -> str:
        lines = [f"fused  {name}" for name in self.replaced]
        lines += [f"left   {name}: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "nothing to fuse: the model has no residual blocks"


def fuse(model: nn.Module) -> FuseReport:
    """Replace every residual block of ``model`` that the fused kernels compute, in place.

    Parameters and buffers stay the same objects under the same names, so optimizers and checkpoints go on working. A
    sequence that holds nothing but fused blocks becomes one ``FusedStage``.

    Args:
        model: any module; a block itself cannot be replaced in place, only a block inside of a module.

    Returns:
        what was replaced and what was left, and why.
    """
    report = FuseReport()
    _fuse_children(model, "", report)
    return report


def _fuse_children(parent: nn.Module, prefix: str, report: FuseReport) -> None:
    for name, child in list(parent.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, FusedBlock):
            continue
        if _looks_like_a_block(child):
            fused = attempt(child)
            if isinstance(fused, str):
                report.left[path] = fused
            else:
                setattr(parent, name, fused)
                report.replaced.append(path)
            continue
        _fuse_children(child, f"{path}.", report)
        if (
            type(child) is nn.Sequential
            and len(child)
            and all(isinstance(block, FusedBlock) for block in child)
        ):
            setattr(parent, name, _stage(child, training=child.training))
        elif isinstance(child, nn.Conv2d):
            report.left[path] = OUTSIDE + (STEM if path == "conv1" and hasattr(parent, "fc") else "")


def _looks_like_a_block(module: nn.Module) -> bool:
    return all(
        hasattr(module, name) for name in ("conv1", "bn1", "conv2", "bn2", "downsample")
    ) and not hasattr(module, "layer1")


def attempt(block: nn.Module) -> FusedBlock | str:
    """The fused form of ``block``, checked on random input, or why there is none."""
    if reason := obstacle(block):
        return reason
    fused = adopt(block)
    return difference(block, fused, (2, fused.main()[0][0].in_channels, PROBE, PROBE)) or fused


def obstacle(block: nn.Module) -> str | None:
    """Why the fused kernels do not compute ``block``, or None where they may."""
    depth = _depth(block)
    known = {f"{kind}{index}" for kind in ("conv", "bn") for index in range(1, depth + 1)} | {"downsample"}
    for name, child in block.named_children():
        if name not in known and not (isinstance(child, HARMLESS) or _is_empty_sequential(child)):
            return f"{name} is a {type(child).__name__}"
    for index in range(1, depth + 1):
        reason = _layer_obstacle(
            getattr(block, f"conv{index}"), getattr(block, f"bn{index}"), f"conv{index}", f"bn{index}"
        )
        if reason:
            return reason
    return _shortcut_obstacle(block.downsample) or _hook_obstacle(block)  # type: ignore[arg-type]


def _layer_obstacle(conv: nn.Module, norm: nn.Module, conv_name: str, norm_name: str) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"{conv_name} is a {type(conv).__name__}"
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or len(set(conv.padding)) > 1:
        return f"{conv_name} has padding {conv.padding} of mode {conv.padding_mode}"
    for what, value, plain in (
        ("groups", conv.groups, 1),
        ("dilation", conv.dilation, (1, 1)),
        ("stride", conv.stride, (conv.stride[0],) * 2),
    ):
        if value != plain:
            return f"{conv_name} has {what} {value}"
    if conv.bias is not None:
        return f"{conv_name} has a bias"
    if not is_norm(norm) and not _is_timm_norm(norm):
        return f"{norm_name} is a {type(norm).__name__}"
    return None


def _is_timm_norm(norm: nn.Module) -> bool:
    """timm's BatchNormAct2d with a ReLU or no activation: a batch norm that applies the block's own ReLU."""
    if not isinstance(norm, nn.BatchNorm2d) or type(norm).__name__ != "BatchNormAct2d":
        return False
    return all(isinstance(child, HARMLESS) for child in norm.children())


def _shortcut_obstacle(downsample: nn.Module | None) -> str | None:
    if downsample is None or _is_empty_sequential(downsample) or _pad_of(downsample) is not None:
        return None
    children = [child for child in downsample.children() if not isinstance(child, nn.Identity)]
    if not isinstance(downsample, nn.Sequential) or len(children) != 2 or len(children) != len(downsample):
        return (
            f"downsample is a {type(downsample).__name__} of {[type(child).__name__ for child in children]}"
        )
    conv, norm = children
    if isinstance(conv, nn.Conv2d) and (conv.kernel_size != (1, 1) or conv.padding != (0, 0)):
        return f"downsample.0 is {conv.kernel_size[0]}x{conv.kernel_size[1]} with padding {conv.padding}"
    return _layer_obstacle(conv, norm, "downsample.0", "downsample.1")


def _hook_obstacle(block: nn.Module) -> str | None:
    for name, module in block.named_modules():
        if name and (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks):
            return f"{name} has hooks, which a fused block would not call"
    return None


def _is_empty_sequential(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Sequential) and len(module) == 0


def _pad_of(downsample: nn.Module) -> tuple[int, tuple[int, int]] | None:
    """Stride and zero channels of a shortcut of option A, which has no parameters."""
    stride, pad = getattr(downsample, "stride", None), getattr(downsample, "pad_channels", None)
    if isinstance(stride, int) and isinstance(pad, tuple) and not list(downsample.parameters()):
        return stride, (int(pad[0]), int(pad[1]))
    return None


def _depth(block: nn.Module) -> int:
    return 3 if hasattr(block, "conv3") else 2


def adopt(block: nn.Module) -> FusedBlock:
    """The fused form of ``block``, around the same convolutions and batch norms."""
    kind: type[FusedBlock] = FusedBottleneck if _depth(block) == 3 else FusedBasicBlock
    fused = kind.__new__(kind)
    nn.Module.__init__(fused)
    for index in range(1, _depth(block) + 1):
        fused.add_module(f"conv{index}", getattr(block, f"conv{index}"))
        fused.add_module(f"bn{index}", getattr(block, f"bn{index}"))
    downsample = cast("nn.Module | None", block.downsample)
    pad = None if downsample is None else _pad_of(downsample)
    if downsample is None or _is_empty_sequential(downsample):
        fused.downsample = None
    else:
        fused.downsample = downsample if pad is None else PadShortcut(*pad)
    fused.training = block.training
    return fused


def _stage(blocks: Iterable[nn.Module], *, training: bool) -> FusedStage:
    stage = FusedStage(*blocks)
    stage.training = training
    return stage


def difference(plain: nn.Module, fused: nn.Module, size: Sequence[int]) -> str | None:
    """Compare both forms on random input of ``size`` in fp32 on the CPU, in eval mode, on copies nobody else sees.

    Returns:
        what differs, or None.
    """
    ours, theirs = (copy.deepcopy(module).cpu().float().eval() for module in (fused, plain))
    generator = torch.Generator().manual_seed(0)
    for module in theirs.modules():
        _randomize(module, generator)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(*size, generator=generator)
    with torch.no_grad(), implementation("reference"):
        expected, got = theirs(x), ours(x)
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return "its forward pass returns something else"
    if (expected - got).norm() > TOLERANCE * expected.norm():
        return "its forward pass computes something else"
    return None


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Statistics and affines that no two computations agree on by chance; a fresh network's zeros would hide much."""
    if not isinstance(getattr(module, "running_mean", None), Tensor):
        return
    for name, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", 0.5), ("bias", -1.0)):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            with torch.no_grad():
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))


def whole(
    model: nn.Module,
) -> tuple[nn.Conv2d, nn.Module, nn.Module | None, dict[str, FusedStage], nn.Linear]:
    """The parts of a whole ResNet, its blocks fused: stem convolution and norm, max pool, stages, classifier.

    The model is left as it is; its own forward pass is not looked at here.

    Raises:
        Unsupported: something in the model is not what a FusedResNet computes; the message names it.
    """
    for name in ("conv1", "bn1", "fc"):
        if not isinstance(getattr(model, name, None), nn.Module):
            raise Unsupported(
                f"the model has no {name}: FusedResNet.adopt takes ResNets of torchvision's names"
            )
    conv1, bn1, fc = (model.get_submodule(name) for name in ("conv1", "bn1", "fc"))
    reason = _layer_obstacle(conv1, bn1, "conv1", "bn1")
    if reason or not isinstance(conv1, nn.Conv2d) or not isinstance(fc, nn.Linear):
        raise Unsupported(f"{reason or f'fc is a {type(fc).__name__}'}: fuse(model) still takes its blocks")
    pool = getattr(model, "maxpool", None)
    if pool is not None and not _is_stem_pool(pool):
        raise Unsupported(
            f"maxpool is {pool}, not 3x3 of stride 2 and padding 1: fuse(model) still takes its blocks"
        )
    stages = {
        name: _fused_sequence(name, child)
        for name, child in model.named_children()
        if name.startswith("layer")
    }
    return conv1, bn1, pool, stages, fc


def _is_stem_pool(pool: nn.Module) -> bool:
    if not isinstance(pool, nn.MaxPool2d) or pool.ceil_mode:
        return False
    sizes = [
        (v, v) if isinstance(v, int) else tuple(v)
        for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    ]
    return sizes == [(3, 3), (2, 2), (1, 1), (1, 1)]


def _fused_sequence(name: str, sequence: nn.Module) -> FusedStage:
    blocks: list[FusedBlock] = []
    for index, block in enumerate(sequence.children()):
        if not isinstance(block, FusedBlock):
            fused = attempt(block) if _looks_like_a_block(block) else f"it is a {type(block).__name__}"
            if isinstance(fused, str):
                raise Unsupported(f"{name}.{index}: {fused}; fuse(model) takes the blocks that it can")
            blocks.append(fused)
        else:
            blocks.append(block)
    return _stage(blocks, training=sequence.training)

"""Fused forms of residual blocks and whole networks, around the same parameters and buffers.

A block is recognised by its structure (torchvision's, timm's and our own share the names conv1, bn1, …, downsample) and
then checked: both forms must give the same result on random input, so that a block whose forward pass does something
else is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fused_kernels.errors import Unsupported
from fused_kernels.launch import implementation
from fused_kernels.modules.block import FusedBasicBlock, FusedBlock, FusedBottleneck, working_children
from fused_kernels.modules.norm import is_norm
from fused_kernels.modules.shortcut import PadShortcut
from fused_kernels.modules.stage import FusedStage

HARMLESS = (nn.Identity, nn.ReLU)
"""Children that a fused block may leave out: it applies its ReLUs itself."""
TOLERANCE = 1e-4
"""Relative L2 difference between a block and its fused form, in fp32."""
PROBE = 6
"""Height and width of the random input that a replacement is checked with."""


def looks_like_a_block(module: nn.Module) -> bool:
    """Whether a module has a residual block's children, and is not a whole network."""
    names = ("conv1", "bn1", "conv2", "bn2", "downsample")
    return all(hasattr(module, name) for name in names) and not hasattr(module, "layer1")


def fused_form(block: nn.Module) -> FusedBlock | str:
    """The fused form of ``block``, checked on random input, or why there is none."""
    if reason := _obstacle(block):
        return reason
    fused = _adopted(block)
    carry_hooks(block, fused)
    return difference(block, fused, (2, fused.main()[0][0].in_channels, PROBE, PROBE)) or fused


def fused_stage(blocks: Iterable[nn.Module], *, training: bool) -> FusedStage:
    """Fused blocks as one stage, in the given mode."""
    stage = FusedStage(*blocks)
    stage.training = training
    return stage


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Where PyTorch keeps the hooks of a module, by the number that its handle knows."""


def carry_hooks(plain: nn.Module, fused: nn.Module) -> None:
    """Let ``fused`` call the hooks of the module that it replaces; their handles remove them from both."""
    for name in (*HOOKS, "_is_full_backward_hook"):
        setattr(fused, name, getattr(plain, name))


def _forget_hooks(copied: nn.Module) -> None:
    """Take the user's hooks from a copy, which runs on random input."""
    for name in HOOKS:
        getattr(copied, name).clear()


def difference(plain: nn.Module, fused: nn.Module, size: Sequence[int]) -> str | None:
    """Compare copies of both forms on random input of ``size`` in fp32 on the CPU; return the difference, or None."""
    ours, theirs = (copy.deepcopy(module).cpu().float().eval() for module in (fused, plain))
    generator = torch.Generator().manual_seed(0)
    for module in theirs.modules():
        _randomize(module, generator)
        _forget_hooks(module)
    _forget_hooks(ours)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(*size, generator=generator)
    with torch.no_grad(), implementation("reference"):
        expected, got = theirs(x), ours(x)
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return "its forward pass returns something else"
    if (expected - got).norm() > TOLERANCE * expected.norm():
        return "its forward pass computes something else"
    return None


class Parts(NamedTuple):
    """The parts of a whole ResNet."""

    conv1: nn.Conv2d
    bn1: nn.Module
    maxpool: nn.Module | None
    stages: dict[str, FusedStage]
    fc: nn.Linear


def parts_of(model: nn.Module) -> Parts:
    """The parts of a whole ResNet, its blocks fused; the model itself is not changed.

    Raises:
        Unsupported: a FusedResNet does not compute some part of the model; the message names it.
    """
    for name in ("conv1", "bn1", "fc"):
        if not isinstance(getattr(model, name, None), nn.Module):
            raise Unsupported(
                f"the model has no {name}: FusedResNet.adopt takes ResNets with torchvision's names"
            )
    conv1, bn1, fc = (model.get_submodule(name) for name in ("conv1", "bn1", "fc"))
    reason = _layer_obstacle(conv1, bn1, "conv1", "bn1")
    if reason or not isinstance(conv1, nn.Conv2d) or not isinstance(fc, nn.Linear):
        raise Unsupported(
            f"{reason or f'fc is a {type(fc).__name__}'}: fuse(model) can still replace its blocks"
        )
    pool = getattr(model, "maxpool", None)
    if pool is not None and not _is_stem_pool(pool):
        raise Unsupported(
            f"maxpool is {pool}, not 3x3 of stride 2 and padding 1: fuse(model) can still replace its blocks"
        )
    stages = {
        name: fused_stage(_fused_children(name, child), training=child.training)
        for name, child in model.named_children()
        if name.startswith("layer")
    }
    return Parts(conv1, bn1, pool, stages, fc)


def _obstacle(block: nn.Module) -> str | None:
    """Why the fused kernels do not compute ``block``, or None where they may."""
    indices = range(1, _depth(block) + 1)
    known = {f"{kind}{index}" for kind in ("conv", "bn") for index in indices} | {"downsample"}
    for name, child in block.named_children():
        if name not in known and not (isinstance(child, HARMLESS) or _does_nothing(child)):
            return f"{name} is a {type(child).__name__}"
    for index in indices:
        conv, norm = f"conv{index}", f"bn{index}"
        if reason := _layer_obstacle(getattr(block, conv), getattr(block, norm), conv, norm):
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
    if downsample is None or _does_nothing(downsample) or _pad_shortcut(downsample) is not None:
        return None
    children = working_children(downsample) if isinstance(downsample, nn.Sequential) else []
    if len(children) != 2:
        found = [type(child).__name__ for child in downsample.children()]
        return f"downsample is a {type(downsample).__name__} of {found}"
    names = {child: f"downsample.{name}" for name, child in downsample.named_children()}
    conv, norm = children
    if isinstance(conv, nn.Conv2d) and (conv.kernel_size != (1, 1) or conv.padding != (0, 0)):
        return f"{names[conv]} is {conv.kernel_size[0]}x{conv.kernel_size[1]} with padding {conv.padding}"
    return _layer_obstacle(conv, norm, names[conv], names[norm])


def _hook_obstacle(block: nn.Module) -> str | None:
    for name, module in block.named_modules():
        if name and (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks):
            return f"{name} has hooks, which a fused block would not call"
    return None


def _does_nothing(module: nn.Module) -> bool:
    """Whether a module is an Identity, or a sequence that is empty or holds Identities alone."""
    return isinstance(module, nn.Identity) or (
        isinstance(module, nn.Sequential) and not working_children(module)
    )


def _pad_shortcut(downsample: nn.Module) -> PadShortcut | None:
    """Our form of a parameter-free shortcut, or None if ``downsample`` is another kind."""
    stride, pad = getattr(downsample, "stride", None), getattr(downsample, "pad_channels", None)
    if isinstance(stride, int) and isinstance(pad, tuple) and not list(downsample.parameters()):
        return PadShortcut(stride, (int(pad[0]), int(pad[1])))
    return None


def _depth(block: nn.Module) -> int:
    return 3 if hasattr(block, "conv3") else 2


def _adopted(block: nn.Module) -> FusedBlock:
    """The fused form of ``block``, around the same convolutions and batch norms."""
    kind: type[FusedBlock] = FusedBottleneck if _depth(block) == 3 else FusedBasicBlock
    fused = kind.__new__(kind)
    nn.Module.__init__(fused)
    for index in range(1, _depth(block) + 1):
        fused.add_module(f"conv{index}", getattr(block, f"conv{index}"))
        fused.add_module(f"bn{index}", getattr(block, f"bn{index}"))
    downsample = cast("nn.Module | None", block.downsample)
    if downsample is None or _does_nothing(downsample):
        fused.downsample = None
    else:
        fused.downsample = _pad_shortcut(downsample) or downsample
    fused.training = block.training
    return fused


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw statistics and affine parameters: the zeros and ones of a fresh network would hide differences."""
    if not isinstance(getattr(module, "running_mean", None), Tensor):
        return
    for name, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", 0.5), ("bias", -1.0)):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            with torch.no_grad():
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))


def _is_stem_pool(pool: nn.Module) -> bool:
    if not isinstance(pool, nn.MaxPool2d) or pool.ceil_mode:
        return False
    sizes = [
        (v, v) if isinstance(v, int) else tuple(v)
        for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    ]
    return sizes == [(3, 3), (2, 2), (1, 1), (1, 1)]


def _fused_children(name: str, sequence: nn.Module) -> list[FusedBlock]:
    blocks: list[FusedBlock] = []
    for index, block in enumerate(sequence.children()):
        fused: FusedBlock | str = f"it is a {type(block).__name__}"
        if isinstance(block, FusedBlock):
            fused = block
        elif looks_like_a_block(block):
            fused = fused_form(block)
        if isinstance(fused, str):
            raise Unsupported(f"{name}.{index}: {fused}; fuse(model) takes the blocks that it can")
        blocks.append(fused)
    return blocks

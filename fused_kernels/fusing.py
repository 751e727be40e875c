"""Replace a model's residual blocks by fused ones, and report what was replaced, what was left, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from fused_kernels.launch import trains_plainly
from fused_kernels.modules.adoption import carry_hooks, fused_form, fused_stage, looks_like_a_block
from fused_kernels.modules.block import FusedBlock

OUTSIDE = "a convolution outside of a residual block"
STEM = "; fused_kernels.modules.FusedResNet.adopt(model) takes a whole ResNet, stem and classifier too"

ON_CPU = "note   on a CPU the fused blocks train as plain PyTorch; .to('cuda') uses the kernels"


@dataclass
class FuseReport:
    """The result of ``fuse``; prints one line for each module."""

    replaced: list[str] = field(default_factory=list)
    """Names of modules that are fused now."""
    left: dict[str, str] = field(default_factory=dict)
    """Names of modules with convolutions that were left, with the reason."""
    blocks: int = 0
    """Number of residual blocks that were found, fused or left."""
    on_cpu: bool = False
    """Whether a fused block was on a CPU, where no kernel runs."""

    def __str__(self) -> str:
        if not self.blocks and not self.left:
            return "nothing to fuse: the model has no residual blocks"
        lines = [f"fused  {name}" for name in self.replaced]
        lines += [f"left   {name}: {reason}" for name, reason in self.left.items()]
        if self.on_cpu:
            lines.append(ON_CPU)
        return "\n".join([*lines, f"{len(self.replaced)} of {self.blocks} residual blocks fused"])


def fuse(model: nn.Module, *, materialize: bool = False) -> FuseReport:
    """Replace every residual block of ``model`` that the fused kernels compute, in place.

    Parameters and buffers stay the same objects under the same names, so optimizers and checkpoints go on working. A
    sequence that holds nothing but fused blocks becomes one ``FusedStage``. ``model`` may be any module, but a
    model that is itself a block cannot be replaced in place. ``materialize`` is explained at ``FusedBlock`` and set on
    every fused block of ``model``.
    """
    report = FuseReport()
    _fuse_children(model, "", report)
    for block in model.modules():
        if isinstance(block, FusedBlock):
            block.materialize = materialize
    return report


def _fuse_children(parent: nn.Module, prefix: str, report: FuseReport) -> None:
    for name, child in list(parent.named_children()):
        path = f"{prefix}{name}"
        if isinstance(child, FusedBlock):
            continue
        if looks_like_a_block(child):
            report.blocks += 1
            fused = fused_form(child)
            if isinstance(fused, str):
                report.left[path] = fused
            else:
                setattr(parent, name, fused)
                report.replaced.append(path)
                report.on_cpu |= trains_plainly(fused.main()[0][0].weight.device)
            continue
        _fuse_children(child, f"{path}.", report)
        blocks = list(child.children()) if type(child) is nn.Sequential else []
        if blocks and all(isinstance(block, FusedBlock) for block in blocks):
            stage = fused_stage(blocks, training=child.training)
            carry_hooks(child, stage)
            setattr(parent, name, stage)
        elif isinstance(child, nn.Conv2d):
            report.left[path] = OUTSIDE + (STEM if path == "conv1" and hasattr(parent, "fc") else "")

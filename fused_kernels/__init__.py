"""Fused Triton kernels for ResNets: convolution, batch norm, ReLU and residual add in few passes over memory.

    import fused_kernels

    report = fused_kernels.fuse(model)                      blocks of torchvision's, timm's and our ResNets, in place
    network = fused_kernels.modules.FusedResNet.adopt(model)    the stem and head too
    network = fused_kernels.modules.resnet50()                  from scratch, torchvision's state_dict
    step = fused_kernels.graphed(network, images, ...)          inference or a training step as one CUDA graph

Kernels run on CUDA GPUs and, with ``TRITON_INTERPRET=1``, in Triton's interpreter. On other tensors the same modules
compute in plain PyTorch, so that code moves between machines. The operations themselves are in ``fused_kernels.ops``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fused_kernels import modules, ops
    from fused_kernels.fusing import FuseReport, fuse
    from fused_kernels.graphs import graphed

__all__ = ["FuseReport", "fuse", "graphed", "modules", "ops"]

_HOME = {"fuse": "fusing", "FuseReport": "fusing", "graphed": "graphs"}


def __getattr__(name: str) -> Any:
    """Import only what is used: the compiler runs without torch modules, and modules without the compiler."""
    if name in _HOME:
        return getattr(importlib.import_module(f"fused_kernels.{_HOME[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"fused_kernels.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

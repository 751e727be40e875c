"""Errors of this package, as one tree.

FusedKernelError
├── ShapeError         tensors that do not fit one another, or a kernel
├── Unsupported        a dtype, device or layer that no kernel here computes
├── MissingPackage     an optional package that this call needs
└── TuningError        a tuning table that cannot be read, or no configuration that is right
"""

from __future__ import annotations


class FusedKernelError(Exception):
    """Base of every error that a caller of ``fused_kernels`` can fix."""


class ShapeError(FusedKernelError, ValueError):
    """Tensors that do not fit one another: the message names both shapes."""


class Unsupported(FusedKernelError, ValueError):
    """A dtype, device or layer that no kernel here computes."""


class MissingPackage(FusedKernelError, ImportError):
    """An optional package that this call needs: the message says what to install."""


class TuningError(FusedKernelError, ValueError):
    """A tuning table that cannot be read, or a shape for which no configuration gave the right answer."""

"""Names of networks that an optional package, a folder or the user's own code makes."""

from __future__ import annotations

SCHEMES = ("timm", "torchvision", "hf", "module")


def has_scheme(name: str | None) -> bool:
    """Whether ``name`` begins with ``timm:``, ``torchvision:``, ``hf:`` or ``module:``."""
    return name is not None and ":" in name and name.partition(":")[0] in SCHEMES

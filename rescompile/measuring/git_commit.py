"""The commit that a figure comes from. Standard library only: scripts on machines without our dependencies use it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where the package lies in one."""


def commit_of(root: Path = ROOT) -> str:
    """The commit of a checkout, with ``+`` where tracked files differ from it; ``unknown`` outside of one."""
    if not (root / ".git").exists():
        return "unknown"  # an installed package may lie inside another project's checkout
    try:
        short = _git(root, "rev-parse", "--short=10", "HEAD")
        return short + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

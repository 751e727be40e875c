"""File names as text that JSON can hold: Linux allows bytes in them that are not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path


def text_of(path: Path | str) -> str:
    """``path`` with every byte that is not UTF-8 replaced by U+FFFD; for records, not for opening files."""
    return os.fsencode(path).decode("utf-8", "replace")

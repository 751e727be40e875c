"""Where an exception of the user's own code comes from, for a sentence in place of a traceback."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OTHERS = ("rescompile", "importlib", "_bootstrap")
"""Parts of paths of code that is not the user's, beside torch's."""


def first_line(error: BaseException) -> str:
    """The first line of the message without colours, or the name of the exception."""
    return _COLOUR.sub("", str(error)).strip().partition("\n")[0][:200] or type(error).__name__


def causes(error: BaseException) -> list[BaseException]:
    """``error``, and what raised it in turn."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found


def place_of(error: BaseException) -> str:
    """``, at net.py:12`` for the innermost line of the user's own code in ``error``; empty where there is none."""
    torch_folder = str(Path(torch.__file__).parent)
    for cause in reversed(causes(error)):
        if isinstance(cause, SyntaxError) and cause.filename:
            return f", at {Path(cause.filename).name}:{cause.lineno}"
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            parts = Path(frame.filename).parts
            if not frame.filename.startswith((torch_folder, "<")) and not any(p in parts for p in _OTHERS):
                return f", at {Path(frame.filename).name}:{frame.lineno}"
    return ""

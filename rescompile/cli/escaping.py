"""Shows escape sequences in names of classes, files and models as text, instead of sending them to the terminal.

On a terminal, colours and the movements of a progress bar remain, which only this program writes: names from an engine
were cleaned when its manifest was read. Titles, the clipboard, links and every other sequence are shown, not sent.
"""

from __future__ import annotations

import io
import re
from typing import TextIO

from rescompile.wording import CONTROL, shown

_ON_TERMINALS = re.compile(rf"(?:\x1b\[[0-9;?]*[A-Za-z]|\r)|{CONTROL.pattern}")


class _Harmless(io.TextIOWrapper):
    """Text of which control characters are written as ``\\x1b``."""

    def write(self, text: str, /) -> int:
        super().write(_ON_TERMINALS.sub(_kept_or_shown, text) if self.isatty() else shown(text))
        return len(text)


def harmless(stream: TextIO) -> TextIO:
    """``stream`` without control characters, and with letters that its encoding lacks as numbers."""
    if type(stream) is not io.TextIOWrapper:  # what a program put in its place is its own matter
        return stream
    encoding, buffered = stream.encoding, stream.line_buffering
    return _Harmless(stream.detach(), encoding, "backslashreplace", line_buffering=buffered)


def _kept_or_shown(match: re.Match[str]) -> str:
    return shown(match[0]) if CONTROL.fullmatch(match[0]) and match[0] != "\r" else match[0]

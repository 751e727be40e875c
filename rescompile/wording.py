"""Numbers, units and foreign text as the user reads them: the same in every message, table and page."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, and those that reverse the order of letters; tabs and line breaks are not among
them."""


def shown(text: str) -> str:
    """``text`` with the characters of ``CONTROL`` as numbers, such as ``\\x1b``; line breaks and tabs stay."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str) -> str:
    """``text`` with control characters (terminal escapes, line breaks) made visible instead of obeyed."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def brief(value: object, limit: int = 200) -> str:
    """The first line of a text, cut at ``limit`` characters; for what a file says, which may be anything."""
    text = str(value).encode("utf-8", "replace").decode("utf-8").strip()
    return (text.splitlines() or [""])[0][:limit]


def write_json(text: str) -> None:
    """Write ``text`` and a line break to stdout; characters that its encoding lacks become JSON's own escapes."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    sys.stdout.write(text + "\n")


def counted(count: int, noun: str) -> str:
    """``1 image``, ``300 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listing(names: Iterable[str], limit: int = 3) -> str:
    """The first ``limit`` names and the number of the others."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more if every else "none"


def percent(fraction: float) -> str:
    """0.97333 as ``97.333 %``: three decimals show one image in a hundred thousand; trailing zeros are dropped."""
    return f"{_trimmed(100 * fraction)} %"


def points(difference: float) -> str:
    """Percentage points: 0.2 as ``0.2 points``."""
    text = _trimmed(difference)
    return f"{text} point" if text in {"1", "-1"} else f"{text} points"


def size(count: int) -> str:
    """Bytes in decimal units: ``1.25 GB``, ``640 MB``, ``1.1 MB``, ``77 kB``."""
    if 0 < count < 999_500:
        return f"{count / 1e3:.3g} kB"
    if 0 < count < 9_950_000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``3 min 05 s``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def roughly(seconds: float) -> str:
    """An estimate: ``8 s``, ``75 s``, ``3 min``."""
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"


def _trimmed(value: float) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text

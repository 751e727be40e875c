"""One plot: SVG that takes the colours of its page, or PNG on white; drawn only when it is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.errors import OutputError, UsageError
from rescompile.files import atomic_write
from rescompile.presenting.plots.figure import style, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class Plot:
    """A name, a caption and a function that draws the figure."""

    name: str
    """File name of its PNG without the ending; it also keeps the element ids of a page's plots apart."""
    caption: str
    draw: Callable[[], Figure]

    def svg(self) -> str:
        """An ``<svg>`` element on a transparent ground; the same figures give the same text."""
        with style(self.name):
            return to_svg(self.draw())

    def png(self) -> bytes:
        """A bitmap on white."""
        buffer = io.BytesIO()
        with style(self.name):
            self.draw().savefig(buffer, format="png", dpi=160, facecolor="white")
        return buffer.getvalue()

    def write(self, path: Path) -> None:
        """Write the plot to ``path``, as PNG or SVG by its suffix.

        Raises:
            OutputError: the disk is full, or ``path`` may not be written.
        """
        atomic_write(path, self.png() if path.suffix.lower() == ".png" else self.svg().encode())


def check_plot_path(path: Path) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        UsageError: its name ends in neither .svg nor .png.
        OutputError: its folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path.name} is neither .svg nor .png; name the file with one of these")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; make it, or choose another --plot")

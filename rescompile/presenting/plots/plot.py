"""One plot: SVG that takes the colours of its page, or PNG on white; drawn only when it is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.errors import OutputError, UsageError
from rescompile.files import atomic_write
from rescompile.presenting.plots.figure import PAGE_WIDTH, new_axes, style, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class Plot:
    """A name, a caption, and a function that draws on axes of ``width`` x ``height`` points."""

    name: str
    """File name of its PNG without the ending; it also keeps the element ids of a page's plots apart."""
    caption: str
    draw: Callable[[Axes], None]
    height: float = 320
    width: float = PAGE_WIDTH

    def svg(self) -> str:
        """An ``<svg>`` element on a transparent ground; the same figures give the same text."""
        with style(self.name):
            return to_svg(self._figure())

    def png(self) -> bytes:
        """A bitmap on white."""
        buffer = io.BytesIO()
        with style(self.name):
            self._figure().savefig(buffer, format="png", dpi=160, facecolor="white")
        return buffer.getvalue()

    def write(self, path: Path) -> None:
        """Write the plot to ``path``, as PNG or SVG by its suffix.

        Raises:
            OutputError: the disk is full, or ``path`` may not be written.
        """
        atomic_write(path, self.png() if path.suffix.lower() == ".png" else self.svg().encode())

    def _figure(self) -> Figure:
        figure, axes = new_axes(self.height, self.width)
        self.draw(axes)
        return figure


def check_plot_path(path: Path) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        UsageError: its name ends in neither .svg nor .png.
        OutputError: its folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path.name} is neither .svg nor .png; name the file with one of these")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; make it, or choose another --plot")

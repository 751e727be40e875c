"""Options and arguments that commands share one by one, and the form of an option of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
Directory = Annotated[Path, typer.Argument(help="Engine directory, the --output of a build.", metavar="DIR")]
SKIP = "Leave damaged images out instead of stopping."
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        metavar="FILE",
        help="Load the engine only if the owner of this public key signed it; repeat it for several keys.",
    ),
]
SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help=SKIP)]


def option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    """An option of the group ``panel`` of the help."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)

"""The command about this machine: doctor."""

from __future__ import annotations

from rescompile.cli.options import Json
from rescompile.cli.output import show


def doctor(json: Json = False) -> None:
    """Show which backends can build and run on this machine, and how to install what is missing.

    Example:

    - `rescompile doctor`
    """
    from rescompile.environment import diagnose
    from rescompile.presenting.terminal.views import print_findings

    show(diagnose(), print_findings, json=json)

"""``python -m rescompile``: the command line."""

from rescompile.cli.process import run

run()

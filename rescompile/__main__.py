"""``python -m rescompile``: the command line."""

from rescompile.cli import main

main()

"""``python -m rescompile``: the command line."""

from rescompile.cli.app import main

main()

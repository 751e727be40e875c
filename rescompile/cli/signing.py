"""The commands that sign engines: keygen, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rescompile.cli.options import Directory


def keygen(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of the private key; the public one is FILE.pub.")
    ],
) -> None:
    """Make a pair of keys: a private key that signs engines, and a public key that checks the signatures.

    Example:

    - `rescompile keygen --output release.key`
    """
    from rescompile.runtime.signature import make_keys

    public = make_keys(output)
    typer.echo(f"{output}: keep it secret; {public}: give it to those who load your engines")


def sign(
    directory: Directory,
    key: Annotated[Path, typer.Option("--key", help="Private key of rescompile keygen.")],
) -> None:
    """Sign an engine, so that `--trusted-key` accepts it.

    Example:

    - `rescompile sign resnet50-int8-openvino --key release.key`
    """
    from rescompile.runtime.signature import sign as run

    typer.echo(f"{run(directory, key)} written")

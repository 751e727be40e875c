"""The options that every command takes, ``--quiet`` and ``--verbose``, added where commands are registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from rescompile.progress import SHOWN

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only results and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show where in the program an error arose.")]


class Verbosity:
    """Output options of the running command."""

    verbose = False


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` that also takes ``--quiet`` and ``--verbose``."""

    @wraps(command)
    def run(*, quiet: bool, verbose: bool, **values: Any) -> None:
        Verbosity.verbose = verbose
        token = SHOWN.set(not quiet)
        try:
            command(**values)
        finally:
            SHOWN.reset(token)

    signature = inspect.signature(command, eval_str=True)
    keyword = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in signature.parameters.values()
    ]
    keyword += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", Quiet), ("verbose", Verbose))
    ]
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    return run

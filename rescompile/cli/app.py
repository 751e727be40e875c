"""The command line: all commands, and the exit codes. 0: done and passed, 1: a mistake, 2: usage, 3: failed verdict."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
import warnings
from typing import Annotated, NoReturn, TextIO

import typer

from rescompile.cli.build import build, calibrate, sensitivity
from rescompile.cli.engine import compare, inspect, run, verify
from rescompile.cli.escaping import harmless
from rescompile.cli.machine import doctor
from rescompile.cli.measure import bench, profile, report
from rescompile.cli.serving import export_server
from rescompile.cli.signing import keygen, sign
from rescompile.cli.train import experiment, train
from rescompile.cli.verbosity import Verbosity, with_common_options
from rescompile.errors import USER_ERRORS
from rescompile.optional import extras_for
from rescompile.wording import write_json

_STOPPED: dict[object, str] = {130: "interrupted", 143: "terminated"}
"""Exit codes after SIGINT and SIGTERM."""
_OUTPUT_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EPIPE}

app = typer.Typer(
    name="rescompile",
    help="Build the fastest engine of a ResNet checkpoint that still gives the right answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit codes: 0 done and passed, 1 a mistake that you can mend, 2 wrong usage, 3 the engine missed a limit.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (build, calibrate, sensitivity, verify, run, inspect, compare, bench, profile, report):
    app.command()(with_common_options(command))
app.command("export-server")(with_common_options(export_server))
for command in (keygen, sign, doctor, train, experiment):
    app.command()(with_common_options(command))


def main() -> NoReturn:
    """Run the command line; errors that a user can mend become one sentence on stderr."""
    sys.stdout, sys.stderr = harmless(sys.stdout), harmless(sys.stderr)
    warnings.showwarning = _show_warning
    try:
        try:
            with extras_for(_command()):
                app()
        finally:
            sys.stdout.flush()
    except USER_ERRORS as error:
        if Verbosity.verbose:
            traceback.print_exc()
        _fail(str(error), getattr(error, "exit_code", 1), kind=type(error).__name__)
    except SystemExit as stop:
        if stop.code in _STOPPED:
            _fail(f"{_STOPPED[stop.code]}; {_left_behind()}", stop.code)
        # Typer has printed a mistake in the options itself, while it handled its own exception
        message = getattr(stop.__context__, "format_message", None)
        if message is not None and "--json" in sys.argv:
            _write_error(message(), stop.code, kind="UsageError")
        raise
    except OSError as error:
        if error.errno not in _OUTPUT_REFUSED:
            raise
        # Python would write what is still in the buffer when it ends, and fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"the output cannot be written ({error.strerror}); send it to another place", 1)
    raise SystemExit(0)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning that users should read as one sentence; others, such as deprecations, only with ``--verbose``."""
    if issubclass(category, UserWarning) or Verbosity.verbose:
        print("note:", " ".join(str(message).split()), file=sys.stderr)


def _command() -> str:
    """The command that was typed, such as ``rescompile build``."""
    return " ".join(["rescompile", *(word for word in sys.argv[1:2] if not word.startswith("-"))])


def _left_behind() -> str:
    if _command() in ("rescompile train", "rescompile experiment"):
        return "the same command with --resume goes on from the last checkpoint"
    return "no unfinished result is left"


def _fail(sentence: str, code: str | int | None, *, kind: str = "Stopped") -> NoReturn:
    """End with ``sentence`` on stderr, and with ``--json`` also as an object on stdout."""
    if "--json" in sys.argv:
        _write_error(sentence, code, kind=kind)
    # a name with a line break in it must not begin a line of its own
    print("error:", "\\n".join(sentence.splitlines()), file=sys.stderr)
    raise SystemExit(code) from None


def _write_error(sentence: str, code: str | int | None, *, kind: str) -> None:
    write_json(json.dumps({"error": {"kind": kind, "message": sentence, "exit_code": code}}))


def _print_version(asked: bool) -> None:
    if asked:
        from rescompile.version import VERSION

        typer.echo(f"rescompile {VERSION}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass

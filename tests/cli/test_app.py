"""Exit codes, and the output on stdout and stderr."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from calibration.errors import ImageSetError
from rescompile.cli import app
from rescompile.errors import EngineError, UsageError
from rescompile.presenting.terminal.report import TerminalProgress
from tests.commands import succeeds

Said = pytest.CaptureFixture[str]


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> Any:
    """Run ``doctor`` while its work raises; gives the exit code and what stands on stderr."""

    def run(error: BaseException) -> tuple[object, str]:
        def diagnose() -> None:
            raise error

        monkeypatch.setattr("rescompile.environment.diagnose", diagnose)
        monkeypatch.setattr(sys, "argv", ["rescompile", "doctor"])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        assert printed.out == ""
        return stop.value.code, printed.err

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("pass one"), 2, "error: pass one\n"),
        (EngineError("a\nerror: b.png"), 1, "error: a\\nerror: b.png\n"),
        (EngineError("it is damaged"), 1, "error: it is damaged\n"),
        (ImageSetError("no image"), 1, "error: no image\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; no unfinished result is left\n"),
        (SystemExit(143), 143, "error: terminated; no unfinished result is left\n"),
        (SystemExit(7), 7, ""),
    ],
)
def test_every_end_has_its_code_and_at_most_one_sentence(
    ends: Any, error: BaseException, code: int, said: str
) -> None:
    assert ends(error) == (code, said)


def test_an_interrupted_training_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    def interrupted() -> None:
        raise SystemExit(130)

    monkeypatch.setattr(app, "app", interrupted)
    monkeypatch.setattr(sys, "argv", ["rescompile", "train", "--data", "digits"])
    with pytest.raises(SystemExit):
        app.main()
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--bogus"], "--bogus"), (["--precision", "int9"], "int9"), (["--depth"], "--depth")],
)
def test_wrong_options_are_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["rescompile", "build", "--json", *arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    error = json.loads(capsys.readouterr().out)["error"]
    assert (stop.value.code, error["exit_code"], error["kind"]) == (2, 2, "UsageError")
    assert said in error["message"]


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.EIO, "disk broken")])
def test_our_own_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def diagnose() -> None:
        raise error

    monkeypatch.setattr("rescompile.environment.diagnose", diagnose)
    monkeypatch.setattr(sys, "argv", ["rescompile", "doctor"])
    with pytest.raises(type(error)):
        app.main()


def test_every_command_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(sys, "argv", ["rescompile", "--help"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("build", "calibrate", "verify", "run", "inspect", "doctor"))


@pytest.mark.parametrize(
    ("words", "said"),
    [("frobnicate", "No such command"), ("build --frob", "No such option"), ("run engine", "PHOTO")],
)
def test_what_the_command_line_does_not_know_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: Said, words: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["rescompile", *words.split()])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


COMMANDS = ("build", "calibrate", "sensitivity", "verify", "run", "inspect", "compare", "bench", "profile", "report",
            "export-server", "doctor")  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_no_name_at_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = succeeds(command, "--help")
    assert "\u2026" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_with_json_an_error_is_json_too(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    def diagnose() -> None:
        raise EngineError("it is damaged")

    monkeypatch.setattr("rescompile.environment.diagnose", diagnose)
    for words, traced in ((["--json"], False), (["--json", "-v"], True)):
        monkeypatch.setattr(sys, "argv", ["rescompile", "doctor", *words])
        with pytest.raises(SystemExit) as stop:
            app.main()
        said = capsys.readouterr()
        assert stop.value.code == 1
        assert json.loads(said.out) == {
            "error": {"kind": "EngineError", "message": "it is damaged", "exit_code": 1}
        }
        assert said.err.endswith("error: it is damaged\n")
        assert ("Traceback" in said.err) is traced


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    def diagnose() -> list[object]:
        with TerminalProgress() as progress:
            progress.stage_started("look")
        return []

    monkeypatch.setattr("rescompile.environment.diagnose", diagnose)
    for words, shown in (([], "look: started\n"), (["-q"], "")):
        monkeypatch.setattr(sys, "argv", ["rescompile", "doctor", *words])
        with pytest.raises(SystemExit):
            app.main()
        assert capsys.readouterr().err == shown


def test_shells_can_complete_words() -> None:
    asked = {"_RESCOMPILE_COMPLETE": "complete_bash", "COMP_WORDS": "rescompile ver", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'rescompile'; from rescompile.cli.app import app; app(prog_name='rescompile')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["verify"], done.stderr


def test_help_lists_the_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setattr(sys, "argv", ["rescompile", "--help"])
    with pytest.raises(SystemExit):
        app.main()
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "0 done and passed, 1 a mistake that you can mend, 2 wrong usage, 3 the engine missed a limit"
        in shown
    )

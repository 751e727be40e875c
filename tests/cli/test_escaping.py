"""Names cannot control a terminal: escape sequences in classes, models and files are printed as text."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from PIL import Image

import rescompile
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.cli.escaping import harmless
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.manifest import read_manifest
from rescompile.wording import CONTROL
from tests.commands import sent

TITLE = "\x1b]0;owned\x07"
CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"
HOSTILE = f"cat{TITLE}{CLIPBOARD}\x1b[2J\x9b31m\r\x08\u202egod"


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_what_commands_a_terminal_is_shown(terminal: bool) -> None:
    raw = Terminal() if terminal else io.BytesIO()
    stream = harmless(io.TextIOWrapper(raw, "utf-8"))
    stream.write(HOSTILE + "\n\ttab")
    stream.flush()
    text = raw.getvalue().decode()
    assert "\\x1b]0;owned\\x07" in text
    assert "\\x1b]52;" in text
    assert "\\x9b31m" in text
    assert "\\u202e" in text
    assert text.endswith("\n\ttab")
    assert ("\x1b[2J" in text) == terminal, "a terminal gets colours and the steps of a progress bar"
    left = text.replace("\x1b[2J", "").replace("\r", "") if terminal else text
    assert CONTROL.search(left) is None


def test_letters_that_the_encoding_lacks_become_numbers() -> None:
    raw = io.BytesIO()
    stream = harmless(io.TextIOWrapper(raw, "ascii"))
    assert harmless(stream) is stream
    stream.write("é")
    stream.flush()
    assert raw.getvalue() == b"\\xe9"


@pytest.fixture(scope="module")
def hostile(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine and a photograph whose names hold escape sequences."""
    folder = tmp_path_factory.mktemp("hostile")
    rescompile.build(
        BuildConfig(
            model=ModelConfig(weights=str(small / "net.pth")),
            calibration=CalibrationConfig(images=small / "images.npz", effort="fast"),
            backend="onnxruntime",
            output=folder / "engine",
        )
    )
    found = read_manifest(folder / "engine")
    (output,) = found.outputs
    labels = tuple(f"{HOSTILE}{index}" for index in range(output.shape[1]))
    named = msgspec.structs.replace(output, labels=labels)
    write_hashed_manifest(folder / "engine", msgspec.structs.replace(found, model=HOSTILE, outputs=(named,)))
    Image.new("RGB", (40, 40)).save(folder / f"{TITLE}.png".replace("/", ""))
    return folder


def test_names_in_a_manifest_are_cleaned_when_it_is_read(hostile: Path) -> None:
    raw = (hostile / "engine/manifest.json").read_text("utf-8")
    assert "\\x1b" in raw or "\\u001b" in raw
    found = read_manifest(hostile / "engine")
    assert all(CONTROL.search(text) is None for text in (found.model, *found.classes))


def test_no_command_sends_an_escape(hostile: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "")
    monkeypatch.setenv("TERM", "dumb")
    engine, photo = hostile / "engine", next(hostile.glob("*.png"))
    for words in (
        ["inspect", engine],
        ["run", engine, photo],
        ["run", engine, photo, "--json"],
        ["verify", engine, "--validation-set", small / "images.npz"],
        ["compare", engine, "--images", small / "images.npz"],
        ["inspect", hostile / TITLE],
        ["export-server", engine, "--server", "triton", "--output", hostile / "served"],
    ):
        _, out, err = sent(*words)
        assert out + err, words
        assert CONTROL.search(out + err) is None, (words, out, err)
        assert "Traceback" not in out + err

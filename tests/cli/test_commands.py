"""The commands that build and use engines, as a user types them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import call, sent

Say = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def engine(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory, whose build also printed its report as JSON."""
    folder, printed = tmp_path_factory.mktemp("commands") / "engine", io.StringIO()
    with redirect_stdout(printed):
        code = call("build", "--weights", small / "net.pth", "--calibration-set", small / "images.npz",
                    "--effort", "fast", "--validation-set", small / "images.npz", "--max-relative-rms", 0.5,
                    "--output", folder, "--json")  # fmt: skip
    assert code == 0
    report = json.loads(printed.getvalue())
    assert report["passed"]
    assert report == json.loads((folder / "report.json").read_text())
    return folder


def test_verify_prints_asked_beside_measured(engine: Path, small: Path, capsys: Say) -> None:
    words = ("verify", engine, "--validation-set", small / "images.npz")
    assert call(*words, "--max-relative-rms", 0.5) == 0
    assert "asked at most 0.5" in capsys.readouterr().out
    assert call(*words, "--max-relative-rms", 1e-9, "--json") == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"]
    assert report["limits"]["max_relative_rms"] == 1e-9


def test_verify_takes_the_limits_of_the_build_by_itself(engine: Path, small: Path, capsys: Say) -> None:
    assert call("verify", engine, "--validation-set", small / "images.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["limits"]["max_relative_rms"] == 0.5


def test_run_prints_the_classes_of_each_photograph(engine: Path, tmp_path: Path, capsys: Say) -> None:
    for name in ("a.png", "b.jpg"):
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    assert call("run", engine, tmp_path / "a.png", tmp_path / "b.jpg", "--top", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "%" in lines[1]
    assert "class " in lines[1]
    assert call("run", engine, tmp_path, "--top", 3) == 0
    assert capsys.readouterr().out.splitlines() == lines, "a folder is its images"
    assert call("run", engine, tmp_path / "a.png", "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["predictions"]) == 5
    assert all(each["class"] == f"class {each['index']}" for each in answer["predictions"])
    shares = [each["probability"] for each in answer["predictions"]]
    assert shares == sorted(shares, reverse=True)


def test_run_writes_a_table_or_lines_of_json(engine: Path, tmp_path: Path, capsys: Say) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32), "olive").save(tmp_path / name)
    table, lines = tmp_path / "out.csv", tmp_path / "out.jsonl"
    for path in (table, lines):
        assert call("run", engine, tmp_path, "--top", 2, "-o", path) == 0
    assert capsys.readouterr().out == ""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    answers = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(row["file"], row["class"], float(row["probability"])) for row in rows] == [
        (answer["file"], each["class"], each["probability"])
        for answer in answers
        for each in answer["predictions"]
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2"]
    assert call("run", engine, tmp_path, "-o", tmp_path / "out.txt") == 2
    assert "end its name with .csv or .jsonl" in capsys.readouterr().err


def test_inspect_shows_what_is_inside(engine: Path, capsys: Say) -> None:
    assert call("inspect", engine) == 0
    printed = capsys.readouterr().out
    for word in (
        "resnet20-cifar",
        "9 of 9, seen in the engine",
        "model.bin",
        "hash as built",
        "by mse from 24 images",
    ):
        assert word in printed
    assert call("inspect", engine, "--json") == 0
    inspection = json.loads(capsys.readouterr().out)
    assert inspection["manifest"]["precision"] == "int8"
    assert inspection["calibrated_tensors"] == 21
    assert inspection["floating"] == []


def test_doctor_names_every_backend_and_the_missing_extras(capsys: Say) -> None:
    assert call("doctor") == 0
    printed = capsys.readouterr().out
    for word in ("openvino", "tensorrt-rtx", "onnxruntime", "--backend auto"):
        assert word in printed
    assert call("doctor", "--json") == 0
    assert {"subject", "status", "text"} <= set(json.loads(capsys.readouterr().out)[0])


def test_calibrate_writes_a_table_and_prints_every_method(small: Path, tmp_path: Path, capsys: Say) -> None:
    words = ("calibrate", "--weights", small / "net.pth", "--calibration-set", small / "images.npz")
    assert call(*words, "--calibration-images", 8, "--output", tmp_path / "t.json") == 0
    printed = capsys.readouterr().out
    assert "logit*" in printed
    assert "layer3.2.relu" in printed
    assert "8 images of images.npz" in printed
    assert call(*words, "--output", tmp_path / "t.json", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "t.json").read_text())


def test_the_version_is_printed(capsys: Say) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("rescompile 0.")


def test_names_that_are_no_utf8_go_through_every_command(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xffme"))
    strange.mkdir()
    images, weights = strange / "images.npz", strange / "net.pth"
    images.write_bytes((small / "images.npz").read_bytes())
    weights.write_bytes((small / "net.pth").read_bytes())
    monkeypatch.chdir(strange)
    words = ("build", "--weights", weights, "--precision", "fp32", "--validation-set", images)
    assert call(*words, "--output", strange / "e") == 0
    assert "\ufffd" in json.loads((strange / "e/report.json").read_text())["engine_directory"]
    assert call("verify", strange / "e", "--validation-set", images) == 0
    Image.new("RGB", (32, 32)).save(strange / "a.png")
    assert call("run", strange / "e", strange / "a.png", "--json") == 0
    assert "\ufffd" in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_every_encoding_of_the_terminal_will_do(small: Path, tmp_path: Path, encoding: str) -> None:
    names = ["V\u00f6gel", "\u732b", *(f"class {index}" for index in range(8))]
    (tmp_path / "classes.txt").write_text("\n".join(names), "utf-8")
    photo = tmp_path / "h\u00fctte.png"
    Image.new("RGB", (32, 32)).save(photo)

    def say(*words: object) -> str:
        code, out, err = sent(*words, encoding=encoding)
        assert code == 0, err
        return out

    engine = tmp_path / "\u732b"
    built = ("build", "--weights", small / "net.pth", "--precision", "fp32", "--classes", tmp_path / "classes.txt",
             "--validation-set", small / "images.npz", "--output", engine)  # fmt: skip
    assert "verified" in say(*built)
    assert "class 7" in say("run", engine, photo, "--top", 10)
    (answer,) = json.loads(say("run", engine, photo, "--top", 10, "--json"))
    assert {each["class"] for each in answer["predictions"]} == set(names)
    (logits,) = json.loads(say("inspect", engine, "--json"))["manifest"]["outputs"]
    assert logits["labels"] == names
    done = subprocess.run(
        [sys.executable, "-m", "rescompile", "inspect", engine],
        capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert say("inspect", engine) == done.stdout.decode(encoding), "in a process of its own"
    assert "V" in say("inspect", engine)
    say("compare", engine, "--images", small / "images.npz", "--limit", 1, "--plot", tmp_path / "plot.svg")

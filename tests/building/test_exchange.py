"""``rescompile table export`` and ``import``, as a user types them, and the same scales on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.collect import collect
from calibration.exchange import format_of
from calibration.images import open_image_set
from calibration.imported import import_table, read_foreign
from calibration.preprocess import CIFAR, normalize
from calibration.scales import scale_of
from calibration.table import make_table, read_table
from rescompile.building.source import Source
from rescompile.cli import app
from rescompile.graph.shared.topology import quantized_tensors
from tests import portable

Say = pytest.CaptureFixture[str]


def succeeds(*words: object) -> None:
    """Run a command that must end well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rescompile", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
    assert not stop.value.code


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, capsys: Say, tmp_path: Path) -> Any:
    """Run a command in an empty folder; gives what it prints, or its one sentence where a code is expected."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["rescompile", "table", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        assert int(stop.value.code or 0) == code, printed.err
        if not code:
            return printed.out
        assert not printed.out
        (said,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        return said

    return run


@pytest.fixture(scope="module")
def made(small: Path, small_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration table of the small network as it is in its checkpoint, not equalized."""
    images, preprocess = open_image_set(small / "images.npz"), small_source.preprocess
    tensors = quantized_tensors(small_source.graph)
    batches = (normalize(batch.images, preprocess) for batch in images.batches(preprocess, 8))
    table = make_table(
        collect(small_source.graph.SerializeToString(), tensors, batches),
        "mse",
        model=small_source.name,
        checkpoint_sha256=small_source.checkpoint.sha256,
        images=images,
        preprocess=preprocess,
    )
    path = tmp_path_factory.mktemp("exchange") / "calibration.json"
    table.write(path)
    return path


def test_a_table_goes_out_and_comes_back_and_builds(
    says: Any, made: Path, small: Path, tmp_path: Path
) -> None:
    assert "out.cache: 21 scales by mse for tensorrt" in says(
        "export", made, "--format", "tensorrt", "--output", "out.cache"
    )
    printed = says("import", "out.cache", "--weights", small / "net.pth", "--output", "back.json")
    assert "back.json: 21 scales for resnet20-cifar from out.cache" in printed
    assert printed.count("none") == 2
    back = read_table(tmp_path / "back.json")
    assert back.scales() == read_table(made).scales()
    assert back.method == "tensorrt-cache"
    succeeds("build", "--weights", small / "net.pth", "--calibration", "back.json", "--output", "engine",
             "--validation-set", small / "images.npz", "--max-relative-rms", 0.5)  # fmt: skip
    assert read_table(tmp_path / "engine/calibration.json") == back


@pytest.mark.parametrize("ending", ["json", "cache", "flatbuffers"])
def test_every_form_of_onnxruntime_comes_back(
    says: Any, made: Path, small: Path, tmp_path: Path, ending: str
) -> None:
    said = json.loads(says("export", made, "--format", "onnxruntime", "--output", f"r.{ending}", "--json"))
    assert (said["tensors"], said["method"], said["format"]) == (21, "mse", "onnxruntime")
    report = json.loads(says("import", f"r.{ending}", "--weights", small / "net.pth", "--json"))
    assert report["source_sha256"] == said["sha256"]
    assert (report["rounded_up"], report["unused"], report["method"]) == ([], [], "onnxruntime-table")
    assert read_table(tmp_path / "calibration.json").scales() == read_table(made).scales()


def test_what_was_rounded_and_what_was_left_is_told(
    says: Any, small: Path, small_source: Source, tmp_path: Path
) -> None:
    tensors = [*quantized_tensors(small_source.graph), *(f"more{index}" for index in range(9))]
    lines = [f"{name}: 3c008912" for name in tensors]
    (tmp_path / "c").write_text("\n".join(["TRT-8601-MinMaxCalibration", *lines]))
    printed = says("import", "c", "--format", "tensorrt", "--weights", small / "net.pth")
    assert "rounded up to the next FP16 number: 21 (input, " in printed
    assert "in the file, but not quantized here: 9 (more0, more1, " in printed


def test_the_header_is_the_users(says: Any, made: Path, tmp_path: Path) -> None:
    words = ("export", made, "--output", "c", "--header", "TRT-8601-MinMaxCalibration", "--format")
    says(*words, "tensorrt")
    assert (tmp_path / "c").read_text().startswith("TRT-8601-MinMaxCalibration\ninput: ")
    assert "--header belongs to TensorRT's cache" in says(*words, "onnxruntime", code=2)
    assert "'' is no first line" in says(*words[:-2], "", "--format", "tensorrt", "--force", code=1)


def test_nothing_that_exists_is_replaced_unless_told(
    says: Any, made: Path, small: Path, tmp_path: Path
) -> None:
    export = ("export", made, "--format", "tensorrt", "--output")
    (tmp_path / "c").write_text("mine")
    assert "c exists already; pass --force" in says(*export, "c", code=1)
    assert (tmp_path / "c").read_text() == "mine"
    says(*export, "c", "--force")
    imports = ("import", "c", "--weights", small / "net.pth", "--output")
    assert "c exists already; pass --force" in says(*imports, "c", code=1)
    assert "is a folder; choose a file" in says(*imports, tmp_path, "--force", code=1)
    assert "absent is no folder; make it" in says(*imports, "absent/t.json", code=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "in.cache does not exist"),
        ("hello", "begins like no calibration file that is known"),
        ("TRT-8601-MinMaxCalibration\ninput: 3c00", "line 2 is 'input: 3c00'"),
        ("TRT-8601-MinMaxCalibration\ninput: 3c008912", "has no scale for 20 of the network's 21 quantized"),
        ("{}", "has no scale for 21 of the network's 21 quantized tensors (input, "),
        ("{", "it is no JSON, or half of it"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    says: Any, small: Path, tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "in.cache").write_text(content)
    before = list(tmp_path.iterdir())
    assert said in says("import", "in.cache", "--weights", small / "net.pth", code=1)
    assert list(tmp_path.iterdir()) == before


def test_a_calibration_table_is_no_file_of_another_tool(says: Any, made: Path, small: Path) -> None:
    said = says("import", made, "--weights", small / "net.pth", "--output", "t.json", code=1)
    assert "calibration.json of rescompile already" in said


def test_a_table_that_was_changed_is_not_exported(says: Any, made: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(made.read_text().replace('"mse"', '"max"', 1))
    words = ("--format", "tensorrt", "--output", "c")
    assert "was changed after it was made" in says("export", "t.json", *words, code=1)
    assert "does not exist: pass the calibration.json" in says("export", "absent", *words, code=1)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_the_help_has_examples(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "rescompile", "table", command, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    ).stdout  # fmt: skip
    assert f"rescompile table {command}" in shown
    assert "Example" in shown


def test_the_commands_of_the_how_to_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/how-to/calibration.md").read_text("utf-8")
    section = page.partition("## To and from TensorRT and ONNX Runtime")[2].partition("\n## ")[0]
    lines = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    commands = [line.removeprefix("rescompile ").split() for line in lines]
    assert [words[0] for words in commands] == ["calibrate", "table", "table", "table", "build"]
    (tmp_path / "my.pth").write_bytes((small / "net.pth").read_bytes())
    (tmp_path / "photos.npz").write_bytes((small / "images.npz").read_bytes())
    for words in commands:
        # a random network keeps no default limit, and a CIFAR network has no built-in photographs to be judged by
        judged = ["--validation-set", "photos.npz", "--max-relative-rms", 0.5] if words[0] == "build" else []
        succeeds(*words, *judged)
    assert (tmp_path / "imported-int8/manifest.json").is_file()
    assert (
        read_table(tmp_path / "imported.json").scales() == read_table(tmp_path / "calibration.json").scales()
    )


class _Images:
    """Four batches of seeded images, as ONNX Runtime's calibration asks for them."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0).standard_normal
        self._batches = iter([{"input": draw((2, 3, 32, 32), dtype=np.float32)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self._batches, None)


@pytest.mark.parametrize("method", ["MinMax", "Percentile"])
def test_scales_that_onnxruntime_chose_are_taken_rounded_up(tmp_path: Path, method: str) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    if "calibration_cache_path" not in signature(quantization.quantize_static).parameters:
        pytest.skip("this ONNX Runtime keeps no calibration cache")
    graph, checkpoint = portable.network()
    onnx.save(graph, tmp_path / "reference.onnx")
    quantization.quantize_static(
        tmp_path / "reference.onnx",
        tmp_path / "theirs.onnx",
        _Images(),
        calibrate_method=quantization.CalibrationMethod[method],
        calibration_cache_path=tmp_path / "cache.json",
        activation_type=quantization.QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
    )
    theirs = {c.name: numpy_helper.to_array(c) for c in onnx.load(tmp_path / "theirs.onnx").graph.initializer}
    made = import_table(
        read_foreign(tmp_path / "cache.json", format_of(tmp_path / "cache.json")),
        model="resnet8-cifar",
        checkpoint_sha256=checkpoint,
        preprocess=CIFAR,
        tensors=quantized_tensors(graph),
    )
    assert "conv1" in made.unused, "ONNX Runtime calibrates the outputs of convolutions too"
    quantized = [name for name in made.table.tensors if f"{name}_scale" in theirs]
    assert {"input", "relu1", "layer3.0.relu"} <= set(quantized)
    for name in quantized:
        scale = float(theirs[f"{name}_scale"])
        assert made.table.scales()[name] == pytest.approx(scale_of(scale * 127), rel=1e-6)

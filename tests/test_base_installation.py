"""Where only the base is installed, engines load, run, are judged and measured; other commands name their extra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from rescompile import optional

ROOT = Path(__file__).parent.parent
WITHOUT = '''
import sys

class Absent:
    """Stands in front of every finder: the packages of the extras are not there."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MISSING = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())
'''
COMMAND = f"{WITHOUT}\nfrom rescompile.cli.app import main\nmain()"
MISSING = ",".join(sorted({*optional.EXTRA_OF, "scipy", "onnx_ir", "onnxscript", "sklearn"}))


def python(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, MISSING, *map(str, words)]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def works(*words: object) -> str:
    done = python(COMMAND, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_engine_runs_and_explains_itself(small_engines: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    photo, engine = tmp_path / "photo.png", small_engines["int8"]
    Image.new("RGB", (32, 32), "olive").save(photo)
    assert "class" in works("run", engine, photo)
    assert "hash as built" in works("inspect", engine)
    assert "openvino" in works("doctor")
    assert "Usage" in works("--help")


def test_an_engine_is_judged_by_the_figures_of_a_full_installation(
    small: Path, small_engines: dict[str, Path]
) -> None:
    built = json.loads((small_engines["int8"] / "report.json").read_bytes())
    found = json.loads(
        works("verify", small_engines["int8"], "--validation-set", small / "images.npz", "--json")
    )
    assert (found["top1_reference"], found["top1_agreement"]) == (
        built["top1_reference"],
        built["top1_agreement"],
    )
    assert found["relative_rms"] == pytest.approx(built["relative_rms"], rel=1e-3)
    assert any("OpenVINO computed the fp32 reference" in note for note in found["notes"])


def test_an_engine_is_measured(small_engines: dict[str, Path]) -> None:
    engine = small_engines["int8"]
    assert "images/s" in works("bench", engine, "--seconds", 0.2, "--starts", 0)
    assert "layer3.2" in works("profile", engine, "--seconds", 0.2)


@pytest.mark.parametrize(
    "words",
    [
        "build --model resnet20-cifar --weights random",
        "calibrate --model resnet20-cifar --weights random",
        "sensitivity --model resnet20-cifar --weights random",
        "compare {engine} --images {images}",
    ],
)
def test_other_commands_say_what_to_type(
    words: str, small: Path, small_engines: dict[str, Path], tmp_path: Path
) -> None:
    told = words.format(engine=small_engines["int8"], images=small / "images.npz").split()
    done = python(f"{COMMAND}", *told)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: rescompile {told[0]} needs the package '")
    assert done.stderr.endswith("[build]'\n")
    assert len(done.stderr.splitlines()) == 1


def test_the_python_function_says_it_too() -> None:
    done = python(f"{WITHOUT}\nimport rescompile\nrescompile.build('resnet50')")
    assert done.stderr.splitlines()[-1].startswith(
        "rescompile.errors.BackendUnavailable: rescompile.build needs the package '"
    )


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(optional.EXTRA_OF.values()) <= set(extras)
    listed = {line.split(">")[0].replace("-", "_") for line in extras["build"]}
    assert listed == set(optional.BUILD)


def test_the_command_installs_from_where_this_installation_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert optional.how_to_install("torch") == f"pip install '{ROOT}[build]'"
    monkeypatch.setattr(optional, "__file__", str(tmp_path / "site-packages/rescompile/optional.py"))

    class Installed:
        def __init__(self, origin: str | None) -> None:
            self.origin = origin

        def read_text(self, name: str) -> str | None:
            return self.origin

    for origin, source in (
        (json.dumps({"url": tmp_path.as_uri(), "dir_info": {}}), str(tmp_path)),
        (json.dumps({"url": (tmp_path / "gone").as_uri(), "dir_info": {}}), "rescompile"),
        (json.dumps({"url": "file:///r.whl", "archive_info": {}}), "rescompile"),
        (None, "rescompile"),
    ):
        monkeypatch.setattr(optional.metadata, "distribution", lambda name, o=origin: Installed(o))
        assert optional.how_to_install("onnx") == f"pip install '{source}[build]'"

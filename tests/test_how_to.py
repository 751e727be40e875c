"""Commands and programs of the how-to pages that need neither a GPU nor a server run as they are written."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from PIL import Image

import rescompile
from rescompile.backends.cuda.devices import Gpu, target_obstacle
from rescompile.manifest import read_manifest
from tests.backends.triton.planned import stand_ins
from tests.commands import succeeds
from tests.kserve import serving
from tests.test_docs import ROOT, printed


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / f"docs/how-to/{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def obey(page: str) -> list[str]:
    """What every command of the page's ``sh`` blocks prints, in order."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.strip()]
    assert {words[0] for words in commands} == {"rescompile"}
    return [succeeds(*words[1:]) for words in commands]


@pytest.fixture
def folder(small_engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, in which the test works, with an engine by the name that the pages use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-int8").symlink_to(small_engines["int8"])
    return tmp_path


def test_every_program_for_python_services_runs(folder: Path) -> None:
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(folder / "digit.png")
    said = [printed(program) for program in blocks("embed-python", "python")]
    assert [lines.splitlines()[-1][:12] for lines in said[1:]] == ["100 answers", "(2, 10)"]
    assert said[0].startswith("class ")


def test_the_program_for_a_gpu_uses_names_that_there_are() -> None:
    (program,) = blocks("embed-python", "py")
    compile(program, "embed-python.md", "exec")
    assert set(re.findall(r"rescompile\.(\w+)", program)) == {"load", "RunOptions"} <= set(rescompile.__all__)
    assert rescompile.RunOptions(streams=3).parallel == 3


def test_commands_for_a_checkout_are_tested_by_their_own_tests() -> None:
    from benchmarks import runtime_overhead, soak

    text = (ROOT / "docs/how-to/embed-python.md").read_text("utf-8")
    commands = re.findall(r"^python -m (benchmarks\.\w+) ", text, flags=re.MULTILINE)
    assert commands == [soak.__name__, runtime_overhead.__name__]
    assert "RESCOMPILE_FUZZ_SECONDS=600 python -m pytest tests/runtime/test_loader_fuzz.py" in text
    assert "RESCOMPILE_FUZZ_SECONDS" in (ROOT / "tests/runtime/test_loader_fuzz.py").read_text("utf-8")


def test_the_page_says_what_an_engine_for_another_gpu_says() -> None:
    gpu = Gpu("NVIDIA H100", "sm_90", "13.0")
    page = " ".join((ROOT / "docs/how-to/another-gpu.md").read_text("utf-8").split())
    assert f"`{target_obstacle(gpu, 'sm_89')}`" in page


@pytest.mark.slow
def test_another_gpu(folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tensorrt_rtx", "triton"):
        pytest.importorskip(module)
    # machine code of this network's kernels: tests/backends/triton/test_backend.py
    monkeypatch.setattr("rescompile.backends.triton.planning.assemble.compile_variants", stand_ins)
    for name in ("net.pth", "images.npz"):
        (folder / name).symlink_to(small / name)
    assert len(obey("another-gpu")) == 5
    targets = [read_manifest(folder / f"digits-int8-{target}").target for target in ("sm_86", "sm_90")]
    assert targets == ["sm_86", "sm_90"]
    tables = [read_manifest(folder / name).calibration for name in ("digits-int8", "digits-int8-sm_86")]
    assert tables[0] is not None
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_serve_at_scale(folder: Path) -> None:
    assert len(obey("serve")) == 2
    (client,) = blocks("serve", "python")
    (version,) = folder.glob("ovms/*/1")
    (entry,) = json.loads((folder / "ovms/config.json").read_bytes())["model_config_list"]
    model = ov.compile_model(version / "model.xml", "CPU", entry["config"]["plugin_config"])
    name = version.parent.name
    with serving(name, lambda images: model([images])[0]) as url:
        right = subprocess.run(
            [sys.executable, "-c", client, url, "digits-int8"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    assert right.stdout.startswith("relative RMS ")
    with serving(name, lambda images: np.zeros((1, 10), np.float32)) as url:
        wrong = subprocess.run(
            [sys.executable, "-c", client, url, "digits-int8"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (wrong.returncode, wrong.stderr) == (1, "")


def test_the_program_for_a_live_module_uses_what_there_is() -> None:
    from rescompile.building.from_python import BuildOptions

    (program,) = blocks("any-network", "py")
    (call,) = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "rescompile.build"
    ]
    used = {keyword.arg for keyword in call.keywords}
    text = (ROOT / "docs/how-to/any-network.md").read_text("utf-8")
    table = text.partition("| keyword |")[2].partition("\n\n")[0]
    described = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row[1:] else "")
    }
    assert used <= described | {"validation_images", "calibration_images"}
    assert described | {"validation_images", "calibration_images"} == set(BuildOptions.__annotations__)


@pytest.mark.slow
def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    assert json.loads(obey("training")[-1])["weight_decay"] == 0.0005
    assert (tmp_path / "digits-int8/manifest.json").is_file()

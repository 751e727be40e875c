"""``README.md`` of an engine directory: complete, runnable, the same for the same engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from rescompile.manifest import read_manifest
from rescompile.presenting.engine_readme import engine_readme
from rescompile.report import read_report


def test_it_says_what_the_engine_is_and_how_it_was_judged(small_engines: dict[str, Path]) -> None:
    folder = small_engines["int8"]
    page = (folder / "README.md").read_text("utf-8")
    assert page.startswith("# resnet20-cifar, int8, for openvino\n")
    report = json.loads((folder / "report.json").read_bytes())
    assert f"{report['relative_rms']:.5g}" in page
    assert str(read_manifest(folder).preprocess).replace("[", "\\[").replace("]", "\\]") in page
    listed = set(re.findall(r"^\| `([^`]+)` \|", page.replace("\\_", "_"), re.MULTILINE))
    assert listed == {path.name for path in folder.iterdir()} - {"README.md"}
    assert "README.md" in read_manifest(folder).files


def test_its_python_lines_run(small_engines: dict[str, Path], tmp_path: Path) -> None:
    folder = small_engines["int8"]
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    (tmp_path / "ENGINE").symlink_to(folder)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "class " in done.stdout, done.stderr


def test_the_same_engine_gives_the_same_bytes(small_engines: dict[str, Path]) -> None:
    folder = small_engines["int8"]
    manifest, report = read_manifest(folder), read_report(folder)
    elsewhere = msgspec.structs.replace(report, engine_directory="/another/place", stages=())
    assert engine_readme(manifest, elsewhere).encode() == (folder / "README.md").read_bytes()


def test_names_are_no_markdown_and_kept_blocks_are_told(small_engines: dict[str, Path]) -> None:
    folder = small_engines["int8"]
    manifest, report = read_manifest(folder), read_report(folder)
    checkpoint = msgspec.structs.replace(manifest.checkpoint, source="<b>|[x](y)\n# no.pth")
    changed = msgspec.structs.replace(manifest, checkpoint=checkpoint, fp16_blocks=("stem", "layer1.0"))
    page = engine_readme(changed, msgspec.structs.replace(report, fp16_blocks=changed.fp16_blocks))
    assert r"\<b\>\|\[x\](y)\\x0a\# no.pth" in page
    assert "int8 with 2 of 11 blocks in FP16" in page
    outputs = (msgspec.structs.replace(manifest.outputs[0], kind="values", labels=()),)
    assert "engine(engine.preprocess(photo))" in engine_readme(
        msgspec.structs.replace(manifest, outputs=outputs), report
    )

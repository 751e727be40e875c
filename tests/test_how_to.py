"""Commands and programs of the how-to pages that need neither a GPU nor a server run as they are written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from tests.kserve import serving
from tests.test_docs import ROOT, run


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / f"docs/how-to/{page}.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def obey(page: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run every command of the page's ``sh`` blocks, in order."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [run([sys.executable, "-m", *shlex.split(line)], folder) for line in lines if line.strip()]


@pytest.fixture
def folder(small_engines: dict[str, Path], tmp_path: Path) -> Path:
    """Where the reader is: an engine by the name that the pages use."""
    (tmp_path / "digits-int8").symlink_to(small_engines["int8"])
    return tmp_path


@pytest.mark.slow
def test_serve_at_scale(folder: Path) -> None:
    assert len(obey("serve", folder)) == 2
    (client,) = blocks("serve", "python")
    (version,) = folder.glob("ovms/*/1")
    model = ov.compile_model(version / "model.xml", "CPU")
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

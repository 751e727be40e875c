"""The shortest command: published weights, built-in photographs, the best backend of this machine.

The publisher is a folder on this machine, and its file a checkpoint of ours under a hash of its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rescompile.cli.app import app
from rescompile.manifest import read_manifest
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.report import read_report
from rescompile.sources import pretrained


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is read as if it were torchvision's; the cache is empty."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("RESCOMPILE_WEIGHTS_URL", folder.as_uri())
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


def publish(folder: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a network of ``depth`` there and let its hash be the published one."""
    spec = find(depth=depth, name=None)
    model, _ = random_model(spec, 1000, seed=0)
    torch.save(model.state_dict(), folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    published = pretrained.Published(digest, 200)
    (folder / "new.pth").rename(folder / published.name(spec.name))
    monkeypatch.setitem(pretrained.PUBLISHED, (spec.name, "v1"), published)


@pytest.mark.slow
def test_the_users_own_words_work_as_they_stand(publisher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "build --depth 101 --precision int8".replace(
        "101", "18"
    )  # the same stages, in a fifth of the time
    publish(publisher, 18, monkeypatch)
    fewer = "--calibration-images 8 --validation-images 8 --max-relative-rms 1"
    result = CliRunner().invoke(app, [*words.split(), *fewer.split()])
    assert result.exit_code == 0, result.output
    folder = Path("resnet18-int8-openvino")
    report, manifest = read_report(folder), read_manifest(folder)
    assert report.passed
    assert report.engine_executed
    assert (report.fused.fused, report.fused.of) == (8, 8)  # type: ignore[union-attr]
    assert manifest.calibration is not None
    assert manifest.calibration.source == "built-in photographs"
    assert "--backend auto chose" in result.output
    assert "pass --calibration-set" in result.output
    assert len(manifest.classes) == 1000


def test_weights_that_are_not_the_published_ones_are_refused(
    publisher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(publisher, 18, monkeypatch)
    (file,) = publisher.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = CliRunner().invoke(app, ["build", "--depth", "18"])
    assert isinstance(result.exception, Exception)
    assert "does not have its published SHA-256" in str(result.exception)
    assert not Path("resnet18-int8-openvino").exists()


def test_offline_the_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path))
    monkeypatch.setenv("RESCOMPILE_WEIGHTS_URL", "https://127.0.0.1:9")
    result = CliRunner().invoke(app, ["build", "--depth", "101"])
    assert "--weights FILE" in str(result.exception)
    assert "resnet101-63fe2227.pth" in str(result.exception)

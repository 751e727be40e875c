"""The C++ library trusts the signatures that the Python package makes, and no others."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rescompile.manifest import SIGNATURE
from rescompile.runtime.signature import make_keys, sign

pytestmark = pytest.mark.slow

QUIET = {"TBB_ENABLE_SANITIZERS": "1", "ASAN_OPTIONS": "detect_leaks=0"}


def test_signed_engines(sanitized: Path, engines: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    folder = tmp_path / "engine"
    shutil.copytree(engines["fp32"], folder)
    public, other = make_keys(tmp_path / "a.key"), make_keys(tmp_path / "b.key")

    def said(*words: object) -> str:
        done = subprocess.run(
            [str(word) for word in (sanitized / "tools/rescompile-check", *words, folder)],
            capture_output=True, text=True, check=False, env={**os.environ, **QUIET},
        )  # fmt: skip
        assert "Sanitizer" not in done.stderr
        return done.stdout

    assert "is not signed, and only signed ones are trusted here" in said("--trusted-key", public)
    sign(folder, tmp_path / "a.key")
    assert said().startswith("good ")
    assert said("--trusted-key", other, "--trusted-key", public).startswith("good ")
    assert "was not signed by a trusted key" in said("--trusted-key", other)
    assert said("--trusted-key", tmp_path / "a.key").startswith("bad 1 ")
    assert said("--trusted-key", tmp_path / "none.pub").startswith("bad 1 ")
    assert "signature says nothing" in said("--no-verify", "--trusted-key", public)
    assert said_in_c(sanitized, folder, public) == "trusted"
    assert "was not signed by a trusted key" in said_in_c(sanitized, folder, other)
    data = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(data.replace(b"fp32", b"fp16", 1))
    assert "was not signed by a trusted key" in said("--trusted-key", public)
    (folder / "manifest.json").write_bytes(data)
    (folder / SIGNATURE).write_bytes(b"short")
    assert "was not signed by a trusted key" in said("--trusted-key", public)


def said_in_c(sanitized: Path, folder: Path, key: Path) -> str:
    done = subprocess.run(
        [sanitized / "tests/c_api_test", folder, key],
        capture_output=True, text=True, check=True, env={**os.environ, **QUIET},
    )  # fmt: skip
    return done.stdout.strip()

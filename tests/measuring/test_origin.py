"""The origin of a figure: commit, machine, settings, memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rescompile.measuring.cold_start import resident_bytes
from rescompile.measuring.git_commit import commit_of
from rescompile.measuring.origin import origin


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_a_commit_says_whether_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a")
    clean = commit_of(tmp_path)
    assert len(clean) == 10
    (tmp_path / "file").write_text("b")
    assert commit_of(tmp_path) == clean + "+"
    (tmp_path / "inner").mkdir()
    assert commit_of(tmp_path / "inner") == "unknown", "an installed package inside of another checkout"


def test_a_broken_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert commit_of(tmp_path) == "unknown"


def test_an_origin_names_machine_threads_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = origin(2)
    assert (found.threads, found.settings["OMP_NUM_THREADS"]) == (2, "3")
    assert found.device == found.machine["cpu"]
    assert origin().threads == int(found.machine["cores"])


def test_memory_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmRSS:\t  12 kB\n")
    assert resident_bytes(status) == 12288
    status.write_text("Name:\tx\n")
    assert resident_bytes(status) == 0
    assert resident_bytes(tmp_path / "none") == 0

"""Signed engines: without the key, nothing that is trusted can be changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rescompile
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.errors import EngineError, RescompileError, UsageError
from rescompile.manifest import SIGNATURE, read_manifest
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.signature import make_keys, sign
from tests.backends.engines import make_engine
from tests.backends.graphs import sample_images

pytest.importorskip("cryptography")


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A signed engine, and the file of the public key."""
    make_engine(tmp_path / "engine", backend="onnxruntime")
    public = make_keys(tmp_path / "release.key")
    sign(tmp_path / "engine", tmp_path / "release.key")
    return tmp_path / "engine", public


def test_a_signed_engine_is_loaded_with_its_key_and_without(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, public = signed
    other = make_keys(tmp_path / "other.key")
    for keys in ([], [public], [str(other), public]):
        with rescompile.load(folder, trusted_keys=keys) as engine:
            assert engine(sample_images(1)).shape == (1, 10)
    assert len((folder / SIGNATURE).read_bytes()) == 64


def test_a_private_key_is_its_owners_alone(signed: tuple[Path, Path], tmp_path: Path) -> None:
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="a key that is overwritten is lost"):
        make_keys(tmp_path / "release.key")


def changed_answers(folder: Path) -> None:
    """A payload that was replaced together with its hashes; only a signature shows it."""
    make_engine(folder.parent / "theirs", "int8", backend="onnxruntime")
    signature = (folder / SIGNATURE).read_bytes()
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "theirs", folder)
    (folder / SIGNATURE).write_bytes(signature)


def resealed(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    write_hashed_manifest(folder, read_manifest(folder))


def flipped(folder: Path) -> None:
    data = bytearray((folder / SIGNATURE).read_bytes())
    data[5] ^= 1
    (folder / SIGNATURE).write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (changed_answers, "was not signed by a trusted key, or changed afterwards"),
        (resealed, "was not signed by a trusted key, or changed afterwards"),
        (flipped, "was not signed by a trusted key"),
        (lambda folder: (folder / SIGNATURE).write_bytes(b""), "was not signed by a trusted key"),
        (lambda folder: (folder / SIGNATURE).write_bytes(bytes(100)), "was not signed by a trusted key"),
        (lambda folder: (folder / SIGNATURE).unlink(), "is not signed, and only signed ones are trusted"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x" * 9), "bytes instead of"),
    ],
)
def test_what_was_changed_after_signing_is_refused(signed: tuple[Path, Path], spoil: Any, words: str) -> None:
    folder, public = signed
    spoil(folder)
    with pytest.raises(EngineError, match=words):
        rescompile.load(folder, trusted_keys=[public])


def test_a_signature_that_is_a_link_or_a_pipe_is_refused(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    (folder / SIGNATURE).rename(folder.parent / "elsewhere")
    (folder / SIGNATURE).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(EngineError, match="is not a regular file"):
        rescompile.load(folder, trusted_keys=[public])
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)
    with pytest.raises(EngineError, match="is not a regular file"):
        rescompile.load(folder, trusted_keys=[public])


def test_another_key_is_not_enough(signed: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="was not signed by a trusted key"):
        rescompile.load(signed[0], trusted_keys=[make_keys(tmp_path / "other.key")])


def test_a_signature_without_hashes_is_a_contradiction(signed: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="without verification a signature says nothing"):
        rescompile.load(signed[0], verify=False, trusted_keys=[signed[1]])


def test_what_is_not_a_key_is_one_sentence(signed: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.pub").write_text("hello")
    (tmp_path / "long.pub").write_bytes(bytes(1 << 17))
    for key in ("text.pub", "long.pub", "missing.pub", "release.key"):
        with pytest.raises(UsageError, match=r"keygen$"):
            rescompile.load(signed[0], trusted_keys=[tmp_path / key])
    for key in ("text.pub", "missing.pub", "release.key.pub"):
        with pytest.raises(UsageError, match=r"make one with rescompile keygen$"):
            sign(signed[0], tmp_path / key)


def test_a_damaged_engine_is_not_signed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    (signed[0] / "model.onnx").write_bytes(b"x")
    with pytest.raises(EngineError):
        sign(signed[0], tmp_path / "release.key")


def test_signing_again_and_replacing_lists_no_signature(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    write_hashed_manifest(folder, read_manifest(folder))
    assert SIGNATURE not in read_manifest(folder).files
    sign(folder, tmp_path / "release.key")
    read_engine(folder)
    rescompile.load(folder, trusted_keys=[public]).close()


def test_without_the_package_the_extra_is_named(
    signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(RescompileError, match=r"pip install '.*\[sign\]'"):
        rescompile.load(signed[0], trusted_keys=[signed[1]])


def test_the_commands_sign_and_check(tmp_path: Path) -> None:
    make_engine(tmp_path / "engine", backend="onnxruntime")

    def said(*words: object) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "rescompile", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    assert said("keygen", "--output", tmp_path / "k") == (
        0,
        f"{tmp_path}/k: keep it secret; {tmp_path}/k.pub: give it to those who load your engines\n",
    )
    photo = Path(__file__).parents[2] / "calibration/photographs"
    run = ("run", tmp_path / "engine", sorted(photo.glob("*.jpg"))[0], "--trusted-key", tmp_path / "k.pub")
    code, words = said(*run)
    assert code == 1
    assert "is not signed, and only signed ones are trusted here" in words
    assert said("sign", tmp_path / "engine", "--key", tmp_path / "k")[0] == 0
    code, words = said(*run)
    assert (code, "class" in words) == (0, True), words

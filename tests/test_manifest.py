"""A manifest that was changed, cut or written by another version is found out, in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescompile.errors import EngineError
from rescompile.manifest import MANIFEST, Batch, FileDigest, Manifest, OutputSpec, read_manifest
from tests.backends.engines import manifest

FILES = {"model.xml": FileDigest("a" * 64, 10), "golden.npz": FileDigest("b" * 64, 20)}


def sealed(directory: Path, **changes: Any) -> Manifest:
    made = msgspec.structs.replace(manifest("int8", "openvino"), files=FILES, **changes)
    made.write(directory)
    return made


def rewritten(directory: Path, **changes: Any) -> None:
    """The manifest with fields changed as text, its digest left as it was."""
    fields = json.loads((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_text(json.dumps(fields | changes))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    made = sealed(tmp_path)
    found = read_manifest(tmp_path)
    assert msgspec.structs.replace(found, sha256="") == made
    assert found.sha256 == made.digest()


def test_the_same_manifest_has_the_same_bytes(tmp_path: Path) -> None:
    sealed(tmp_path)
    first = (tmp_path / MANIFEST).read_bytes()
    sealed(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == first


@pytest.mark.parametrize(("batch", "text"), [(Batch(8, 8, 8), "8"), (Batch(1, 8, 32), "1:8:32")])
def test_a_batch_reads_as_it_was_asked(batch: Batch, text: str) -> None:
    assert str(batch) == text


def test_a_directory_that_is_not_there_is_told_from_one_that_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="it does not exist"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "weights.pth").touch()
    with pytest.raises(EngineError, match=r"weights\.pth is not an engine directory: it is a file; pass"):
        read_manifest(tmp_path / "weights.pth")
    with pytest.raises(EngineError, match=r"it has no manifest\.json; pass the --output of a build"):
        read_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(EngineError, match="is not a regular file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"model": "other"}, {"golden_relative_rms": 1e9}, {"environment": {"a": "b"}}]
)
def test_a_changed_field_breaks_the_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    sealed(tmp_path)
    rewritten(tmp_path, **changes)
    with pytest.raises(EngineError, match="was changed after the build"):
        read_manifest(tmp_path)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("engine", numbered=True)
    sealed(folder)
    content = bytearray((folder / MANIFEST).read_bytes())
    content[place % len(content)] ^= 1 << bit
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(EngineError):
        read_manifest(folder)


def test_the_digest_is_that_of_the_bytes_without_it(tmp_path: Path) -> None:
    made = sealed(tmp_path)
    content = (tmp_path / MANIFEST).read_bytes()
    assert content.endswith(b'  "sha256": "' + made.digest().encode() + b'"\n}\n')
    assert hashlib.sha256(content.replace(made.digest().encode(), b"")).hexdigest() == made.digest()


@pytest.mark.parametrize("added", [b"\n", b" ", b"{}"])
def test_nothing_may_follow_the_digest(tmp_path: Path, added: bytes) -> None:
    sealed(tmp_path)
    content = (tmp_path / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(content + added)
    with pytest.raises(EngineError, match=r"was changed after the build|is damaged"):
        read_manifest(tmp_path)


def test_a_linked_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    sealed(tmp_path)
    (tmp_path / "engine" / MANIFEST).symlink_to(tmp_path / MANIFEST)
    with pytest.raises(EngineError, match=r"not a regular file \(perhaps a symbolic link\)"):
        read_manifest(tmp_path / "engine")


def test_another_format_names_both_versions(tmp_path: Path) -> None:
    sealed(tmp_path)
    rewritten(tmp_path, format=3, something_new=1)
    with pytest.raises(EngineError, match="has format 3, this rescompile reads formats 1 to 2"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": {"min": 0, "opt": 1, "max": 1}},
        {"precision": "int4"},
        {"unknown": 1},
        {"files": {"model.xml": {"sha256": "short", "bytes": 1}}},
        {"files": {"model.xml": {"sha256": "a" * 64, "bytes": -1}}},
        {"format": "one"},
    ],
)
def test_a_field_of_the_wrong_kind_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    sealed(tmp_path)
    rewritten(tmp_path, **changes)
    with pytest.raises(EngineError, match=r"manifest\.json is damaged \("):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_cut_manifest_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(EngineError, match="is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "a\\b", ".", "..", "", "a\0b", MANIFEST])
def test_a_file_outside_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    made = msgspec.structs.replace(manifest("int8", "openvino"), files={name: FileDigest("a" * 64, 1)})
    made.write(tmp_path)
    with pytest.raises(EngineError, match="outside of its directory; do not use this engine"):
        read_manifest(tmp_path)


def test_only_the_manifest_is_written(tmp_path: Path) -> None:
    sealed(tmp_path)
    assert os.listdir(tmp_path) == [MANIFEST]  # noqa: PTH208


def in_format_1(directory: Path) -> None:
    """Rewrite the manifest as an older rescompile wrote it."""
    fields = json.loads((directory / MANIFEST).read_bytes())
    (output,) = fields["outputs"]
    assert output.pop("kind") == "classes"
    assert fields.pop("sizes") is None
    before = {"format": 1, "classes": output.pop("labels")}
    del fields["sha256"], fields["cpu_form"]
    text = json.dumps({**fields, **before, "sha256": ""}, indent=2) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (directory / MANIFEST).write_text(text.replace('"sha256": ""\n}', f'"sha256": "{digest}"\n}}'))


def test_a_manifest_of_format_1_is_one_output_of_classes(tmp_path: Path) -> None:
    made = sealed(tmp_path)
    in_format_1(tmp_path)
    found = read_manifest(tmp_path)
    assert msgspec.structs.replace(found, sha256="") == made
    assert found.outputs[0].kind == "classes"
    assert found.classes == made.classes


@pytest.mark.parametrize(
    ("kind", "shape", "names", "good"),
    [
        ("classes", (-1, 3), 3, True), ("classes", (-1, 3), 2, False), ("classes", (-1, 3, 4, 4), 3, False),
        ("binary", (-1, 1), 2, True), ("binary", (-1, 2), 2, False), ("binary", (-1, 1), 1, False),
        ("multilabel", (-1, 3), 3, True), ("multilabel", (-1, 3), 0, False),
        ("values", (-1, 2), 0, True), ("values", (-1, 2), 2, True), ("values", (-1, 2), 1, False),
        ("features", (-1, 512), 0, True), ("features", (-1, 64, 7, 7), 0, True), ("features", (-1, 64), 64, False),
        ("features", (-1, 64, 7), 0, False), ("values", (-1, 0), 0, False),
    ],
)  # fmt: skip
def test_an_outputs_kind_shape_and_names_fit_together(
    kind: Any, shape: tuple[int, ...], names: int, good: bool
) -> None:
    output = OutputSpec("out", shape, "float32", "NC", kind, tuple(map(str, range(names))))
    assert (output.fault() is None) == good

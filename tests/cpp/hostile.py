"""Engine directories that were damaged or made to do harm; each must be refused in one sentence."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Fields = dict[str, Any]


class Case(NamedTuple):
    """How a good engine is spoilt, and what the C++ library says then: error code and words."""

    spoil: Callable[[Path], None]
    code: int
    words: str


def seal(folder: Path, fields: Fields) -> None:
    """Write ``fields`` with the right digest, and right hashes of all files but those to ``keep``."""
    for name, entry in (fields.get("files") or {}).items():
        if entry.pop("keep", False):
            continue
        content = (folder / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    rest = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(rest, indent=2)[:-2] + ',\n  "sha256": "'
    digest = hashlib.sha256((text + '"\n}\n').encode()).hexdigest()
    (folder / "manifest.json").write_text(text + digest + '"\n}\n')


def changed(change: Callable[[Fields], object]) -> Callable[[Path], None]:
    """A manifest whose fields ``change`` spoils, with a right digest."""

    def spoil(folder: Path) -> None:
        fields = json.loads((folder / "manifest.json").read_bytes())
        change(fields)
        seal(folder, fields)

    return spoil


def with_fields(**values: Any) -> Callable[[Path], None]:
    return changed(lambda fields: fields.update(values))


def without(name: str) -> Callable[[Path], None]:
    return changed(lambda fields: fields.pop(name))


def listing(name: str, **entry: Any) -> Callable[[Path], None]:
    """A manifest that lists one more file."""
    digest = {"sha256": "a" * 64, "bytes": 1, "keep": True} | entry
    return changed(lambda fields: fields["files"].update({name: dict(digest)}))


def file(name: str, content: Callable[[bytes], bytes], *, sealed: bool) -> Callable[[Path], None]:
    """Change the content of a file; if ``sealed``, also correct its hash in the manifest."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(content(path.read_bytes()))
        if sealed:
            seal(folder, json.loads((folder / "manifest.json").read_bytes()))

    return spoil


def replaced(name: str, replace: Callable[[Path], None]) -> Callable[[Path], None]:
    """Something else in the place of a file."""

    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder.parent / f"{folder.name}-{name}").write_bytes(content)
        replace(folder / name)

    return spoil


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / f"{path.parent.name}-{path.name}")


def flipped(content: bytes) -> bytes:
    return (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    )


def golden(change: Callable[[Any, Any], tuple[Any, Any]], save: Any = np.savez) -> Callable[[Path], None]:
    """Other golden arrays, with the right hash."""

    def content(old: bytes) -> bytes:
        arrays, stream = np.load(io.BytesIO(old)), io.BytesIO()
        images, logits = change(arrays["images"], arrays["logits"])
        save(stream, images=images, logits=logits)
        return stream.getvalue()

    return file("golden.npz", content, sealed=True)


def with_output(**fields: Any) -> Callable[[Path], None]:
    return changed(lambda manifest: manifest["outputs"][0].update(fields))


def shape(*sizes: int) -> Callable[[Path], None]:
    return changed(lambda fields: fields["inputs"][0].update(shape=list(sizes)))


BIG = 2**31 - 1
FIELDS = (
    *(
        "format",
        "model",
        "depth",
        "precision",
        "backend",
        "target",
        "batch",
        "inputs",
        "outputs",
        "preprocess",
    ),
    *("checkpoint", "calibration", "golden_relative_rms", "files", "environment"),
)

CASES: dict[str, Case] = {
    # the directory
    "no manifest": Case(lambda folder: (folder / "manifest.json").unlink(), 2, "it has no manifest.json"),
    "linked manifest": Case(replaced("manifest.json", link), 2, "manifest.json is not a plain file"),
    "folder as manifest": Case(replaced("manifest.json", Path.mkdir), 2, "manifest.json is not a plain file"),
    "pipe as manifest": Case(replaced("manifest.json", os.mkfifo), 2, "manifest.json is not a plain file"),
    "missing payload": Case(lambda folder: (folder / "model.bin").unlink(), 2, "model.bin is missing, although"),
    "linked payload": Case(replaced("model.bin", link), 2, "model.bin is not a plain file"),
    "dangling link": Case(replaced("model.bin", lambda path: path.symlink_to("/nowhere/at/all")), 2, "not a plain"),
    "folder as payload": Case(replaced("model.bin", Path.mkdir), 2, "model.bin is not a plain file"),
    "pipe as payload": Case(replaced("model.bin", os.mkfifo), 2, "model.bin is not a plain file"),
    "truncated payload": Case(file("model.bin", lambda old: old[:-1], sealed=False), 2, "bytes instead of"),
    "longer payload": Case(file("model.bin", lambda old: old + b"x", sealed=False), 2, "bytes instead of"),
    "swapped payload": Case(file("model.bin", flipped, sealed=False), 2, "model.bin was changed after the build"),
    "swapped network": Case(file("model.xml", flipped, sealed=False), 2, "model.xml was changed after the build"),
    # the manifest as a text
    "empty manifest": Case(file("manifest.json", lambda old: b"", sealed=False), 2, "is damaged (it is not JSON)"),
    "cut manifest": Case(file("manifest.json", lambda old: old[:-3], sealed=False), 2, "is damaged (it is not JSON)"),
    "garbage manifest": Case(file("manifest.json", lambda old: b"\xff\xfe\0", sealed=False), 2, "it is not JSON"),
    "list as manifest": Case(file("manifest.json", lambda old: b"[]", sealed=False), 2, "`$` must be an object"),
    "deep manifest": Case(file("manifest.json", lambda old: b"[" * 100_000, sealed=False), 2, "it is not JSON"),
    "changed manifest": Case(
        file("manifest.json", lambda old: old.replace(b'"model": "', b'"model": "x'), sealed=False),
        2, "was changed after the build (its digest differs)",
    ),
    "bytes behind the digest": Case(
        file("manifest.json", lambda old: old + b" ", sealed=False), 2, "(its digest differs)"
    ),
    # the fields
    **{f"no {name}": Case(without(name), 2, f"`$.{name}` is missing") for name in FIELDS},
    "unknown field": Case(with_fields(more=1), 2, "`$.more` is a field that this version does not know"),
    "another format": Case(with_fields(format=3), 2, "has format 3, this librescompile reads formats 1 to 2"),
    "format in words": Case(with_fields(format="one"), 2, "`$.format` must be a whole number from 1 to 2"),
    "another backend": Case(
        with_fields(backend="tensorrt-rtx"), 3,
        "this build of librescompile has no backend 'tensorrt-rtx'; it has: openvino",
    ),
    "unknown backend": Case(with_fields(backend="../../x"), 3, "has no backend '../../x'"),
    "wrong precision": Case(with_fields(precision="int4"), 2, "`$.precision` must be one of fp32 fp16 int8"),
    "no classes": Case(with_output(labels=[]), 2, "names 0 classes for an output of 10 values and kind classes"),
    "classes of other kinds": Case(with_output(labels=[1]), 2, "`$.outputs[0].labels` must be a list of texts"),
    "unknown kind": Case(with_output(kind="words"), 2, "`$.outputs[0].kind` must be one of classes binary"),
    "two decisions of ten logits": Case(with_output(kind="binary"), 2, "of 10 values and kind binary"),
    "features with names": Case(with_output(kind="features"), 2, "of 10 values and kind features"),
    "output of nothing": Case(with_output(shape=[-1, 0], labels=[]), 2, "has an output whose size is absurd"),
    "another output": Case(with_output(shape=[-1, 10, 1, 1], kind="features", labels=[]), 2, ""),
    "two inputs": Case(changed(lambda fields: fields["inputs"].append({})), 2, "`$.inputs` must be a list of one"),
    "batch of zero": Case(
        with_fields(batch={"min": 0, "opt": 1, "max": 1}), 2, "`$.batch.min` must be a whole number from 1"
    ),
    "batch the wrong way round": Case(
        with_fields(batch={"min": 4, "opt": 2, "max": 1}), 2, "`$.batch` must be min <= opt <= max"
    ),
    "absurd least batch": Case(
        with_fields(batch={"min": BIG, "opt": BIG, "max": BIG}), 2, f"a least batch of {BIG} images"
    ),
    "absurd largest batch": Case(
        with_fields(batch={"min": 1, "opt": 1, "max": BIG}), 2, "does not fit the manifest"
    ),
    "batch beyond integers": Case(with_fields(batch={"min": 1, "opt": 1, "max": 2**64}), 2, "`$.batch.max` must be"),
    "absurd image": Case(shape(-1, 3, 2**40, 2**40), 2, "has an input whose size is absurd"),
    "negative image": Case(shape(-1, 3, -32, 32), 2, "has an input whose size is absurd"),
    "empty image": Case(shape(-1, 0, 32, 32), 2, "has an input whose size is absurd"),
    "flat image": Case(shape(-1, 32), 2, "does not describe a network with one image input"),
    "another image": Case(shape(-1, 3, 32, 64), 2, "does not fit the manifest"),
    "another type": Case(
        changed(lambda fields: fields["inputs"][0].update(dtype="uint8")), 2, "the manifest says u8"
    ),
    "crop of nothing": Case(changed(lambda fields: fields["preprocess"].update(crop=0)), 2, "`$.preprocess.crop`"),
    "division by zero": Case(
        changed(lambda fields: fields["preprocess"].update(std=[0.0, 1.0, 1.0])), 2, "3 positive numbers"
    ),
    # file names
    "parent folder": Case(listing("../manifest.json"), 2, "outside of its directory; do not use this engine"),
    "absolute name": Case(listing("/etc/passwd"), 2, "outside of its directory"),
    "name with a NUL": Case(listing("model.bin\0.x"), 2, "outside of its directory"),
    "name of a folder": Case(listing(".."), 2, "outside of its directory"),
    "very long name": Case(listing("x" * 5000), 2, "cannot be read (File name too long)"),
    "absurd size": Case(listing("more", bytes=2**62), 2, "more is missing"),
    "negative size": Case(listing("more", bytes=-1), 2, "must be a whole number from 0"),
    "no hash": Case(listing("more", sha256="x"), 2, "must be 64 hexadecimal digits"),
    # the golden answers
    "no golden answers": Case(changed(lambda fields: fields["files"].pop("golden.npz")), 2, "lists no golden.npz"),
    "other golden answers": Case(golden(lambda x, y: (x, y * 1.2)), 2, "does not reproduce its golden answers"),
    "golden answers of one image": Case(golden(lambda x, y: (x, y[:1])), 2, "golden.npz does not fit the manifest"),
    "golden answers of none": Case(golden(lambda x, y: (x[:0], y[:0])), 2, "golden.npz does not fit the manifest"),
    "golden NaN": Case(golden(lambda x, y: (x, y * np.float32("nan"))), 2, "golden.npz does not fit the manifest"),
    "golden shape": Case(golden(lambda x, y: (x[..., :8], y)), 2, "golden.npz does not fit the manifest"),
    "golden doubles": Case(golden(lambda x, y: (x.astype(np.float64), y)), 2, "neither float32 nor uint8"),
    "golden pickle": Case(golden(lambda x, y: (np.array([{}]), y)), 2, "neither float32 nor uint8"),
    "compressed golden": Case(golden(lambda x, y: (x, y), np.savez_compressed), 2, "it is compressed"),
    "cut golden": Case(file("golden.npz", lambda old: old[: len(old) // 2], sealed=True), 2, "it is not a ZIP archive"),
    "golden of garbage": Case(file("golden.npz", lambda old: b"PK\5\6" + b"\xff" * 40, sealed=True), 2, "is damaged"),
    # the payload, as a careful enemy would seal it
    "network of garbage": Case(file("model.xml", lambda old: b"<net", sealed=True), 4, "OpenVINO cannot load"),
    "empty network": Case(file("model.xml", lambda old: b"", sealed=True), 4, "OpenVINO cannot load"),
    "cut network": Case(file("model.xml", lambda old: old[: len(old) // 2], sealed=True), 4, "OpenVINO cannot load"),
    "cut weights": Case(file("model.bin", lambda old: old[: len(old) // 2], sealed=True), 4, "OpenVINO cannot load"),
    "other weights": Case(
        file("model.bin", lambda old: bytes(value ^ 0x55 for value in old), sealed=True), 4, "OpenVINO cannot load"
    ),
    "no network listed": Case(changed(lambda fields: fields["files"].pop("model.xml")), 2, "lists no model.xml"),
}  # fmt: skip

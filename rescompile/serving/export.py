"""``rescompile export-server``: make the model repository of an inference server from an engine directory.

REPO/export.json                     names the engine, and the hash of every file
REPO/NAME/1/                         the payload: version 1 of the model
REPO/NAME/1/model.py, engine/        instead, where rescompile's own runtime serves the engine
REPO/NAME/config.pbtxt, labels.txt   Triton Inference Server; warm-up requests are in REPO/NAME/warmup/
REPO/config.json, labels.txt         OpenVINO Model Server
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from rescompile.backends.openvino.compile import read_payload
from rescompile.engine_files import EngineFiles
from rescompile.errors import EngineError, UsageError
from rescompile.files import atomic_directory, sha256_of
from rescompile.manifest import GRAPH, MANIFEST, FileDigest, Manifest, read_manifest
from rescompile.manifest import OPENVINO_MODEL as MODEL
from rescompile.report import JsonReport, read_report
from rescompile.runtime.golden import read_golden
from rescompile.runtime.integrity import CheckedEngine, read_engine
from rescompile.serving import bfloat16_check, model_server, python_backend, triton_repository
from rescompile.serving.openvino_graph import write_precise
from rescompile.serving.payload import LABELS, SERVER_NAMES, Payload, Server, payload_of
from rescompile.serving.triton_repository import Batching

RECORD = "export.json"
VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of ``export``."""

    server: Server
    output: Path
    name: str | None = None
    """The model's name for clients; None makes it from network and precision."""
    onnx: bool = False
    """Serve the deployable graph instead of the engine."""
    python: bool = False
    """Serve the engine by our own runtime in the server's Python backend."""
    instances: int = 1
    batching: Batching = field(default_factory=Batching)
    force: bool = False
    """Replace an export at ``output``, and export an engine that failed its limits."""

    def __post_init__(self) -> None:
        """Raises UsageError for options that no server takes."""
        if self.python and (self.onnx or self.server != "triton"):
            raise UsageError(
                "--python serves an engine by our runtime, with --server triton and without --onnx; leave one of the "
                "options out"
            )
        if self.instances < 1:
            raise UsageError(f"--instances {self.instances} leaves no instance; pass 1 or more")
        if self.batching.queue_delay < 0:
            raise UsageError(f"--queue-delay {self.batching.queue_delay} is negative; pass 0 or more")


class Export(JsonReport, frozen=True, kw_only=True):
    """``export.json``: describes the repository and its engine."""

    server: Server
    name: str
    backend: str
    max_batch_size: int
    """Most images of one request."""
    engine_sha256: str
    """The manifest's digest."""
    engine_passed: bool
    notes: tuple[str, ...]
    files: dict[str, FileDigest]

    @property
    def server_name(self) -> str:
        """The server's full name, for people."""
        return SERVER_NAMES[self.server]


def export(directory: Path, config: ExportConfig) -> Export:
    """Write the repository of the engine in ``directory``, completely or not at all.

    Raises:
        UsageError: the options contradict the engine or the server.
        EngineError: the engine is damaged, failed its limits, or cannot run on the server.
        OutputError: the repository cannot be written.
    """
    checked = read_engine(directory, also=tuple(read_manifest(directory).files))
    manifest, files = checked.manifest, checked.files
    passed = _verdict(files, force=config.force)
    payload = payload_of(manifest, config.server, onnx=config.onnx, python=config.python)
    name = _name(config.name or f"{manifest.model}-{manifest.precision}")
    with atomic_directory(config.output, force=config.force, known_by=RECORD) as staging:
        folder = staging.folder
        _write_payload(checked, payload, folder / name / VERSION, config.server)
        largest = _write_configuration(folder, name, files, manifest, payload, config)
        record = Export(
            server=config.server,
            name=name,
            backend=payload.backend,
            max_batch_size=largest,
            engine_sha256=manifest.sha256,
            engine_passed=passed,
            notes=(
                *notes_on(manifest, payload, config.server),
                *_rounding(folder / name / VERSION, checked, payload, config, largest),
            ),
            files=_digests(folder),
        )
        (folder / RECORD).write_bytes(record.to_json())
    return record


def _verdict(files: EngineFiles, *, force: bool) -> bool:
    passed = read_report(files).passed
    if not passed and not force:
        raise EngineError(
            f"the engine in {files.directory} failed its limits (see `rescompile inspect`); build one that passes, "
            "or pass --force to serve it all the same"
        )
    return passed


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise UsageError(f"--name {name!r} is not a model name; use letters, digits, '.', '_' and '-'")
    return name


def _write_payload(checked: CheckedEngine, payload: Payload, version: Path, server: Server) -> None:
    version.mkdir(parents=True)
    files = checked.files
    if payload.backend == "python":
        (version / python_backend.MODEL).write_text(python_backend.MODEL_TEXT, "utf-8")
        engine = version / python_backend.ENGINE
        engine.mkdir()
        for name in checked.manifest.files:
            (engine / name).write_bytes(files.read(name))
        (engine / MANIFEST).write_bytes(checked.manifest_text)
        return
    if server == "triton" and payload.backend == "openvino":
        # this server cannot tell OpenVINO to infer in f32; the other has the setting in its configuration
        write_precise(read_payload(files), version / MODEL)
        return
    if server == "openvino" and payload.backend == "onnxruntime":
        model_server.check_runs(*map(files.read, payload.files.values()))
    for served, name in payload.files.items():
        (version / served).write_bytes(files.read(name))


def _write_configuration(
    folder: Path, name: str, files: EngineFiles, manifest: Manifest, payload: Payload, config: ExportConfig
) -> int:
    """Write all but the payload, and return the most images of one request."""
    if config.server == "triton":
        model = folder / name
        if manifest.classes:
            (model / LABELS).write_bytes(_labels(manifest))
        return triton_repository.write_model(
            model, files, manifest, payload, instances=config.instances, batching=config.batching
        )
    if config.batching != Batching():
        raise UsageError(
            "OpenVINO Model Server runs each request as it comes: --max-batch and --queue-delay are for "
            "--server triton; leave them out"
        )
    if manifest.classes:
        (folder / LABELS).write_bytes(_labels(manifest))
    document = msgspec.json.encode(model_server.config_of(name, instances=config.instances))
    (folder / "config.json").write_bytes(msgspec.json.format(document, indent=2) + b"\n")
    return manifest.batch.max


def _labels(manifest: Manifest) -> bytes:
    """One line for each value of the first output, where that has names; white space in a name becomes one blank."""
    return "".join(f"{' '.join(name.split())}\n" for name in manifest.classes).encode()


def notes_on(manifest: Manifest, payload: Payload, server: Server) -> tuple[str, ...]:
    """Sentences about what ``server`` makes of an engine, for whoever starts it."""
    if payload.backend == "tensorrt":
        version = manifest.environment.get("tensorrt", "unknown")
        return (
            f"built by TensorRT {version} for {manifest.target}: the server needs the same TensorRT and such a GPU",
        )
    if payload.backend == "python":
        version = manifest.environment.get("rescompile", "unknown")
        return (
            f"rescompile's own runtime serves this engine: install rescompile {version}, with what this engine needs "
            "to run, for the Python of the server",
        )
    served = (
        ""
        if payload.backend == manifest.backend
        else (f"the deployable graph is served, not the {manifest.backend} engine that was judged")
    )
    return tuple(filter(None, (served, _on_other_cpus(manifest, payload, server))))


def _on_other_cpus(manifest: Manifest, payload: Payload, server: Server) -> str:
    """What the server's library does with INT8 on CPUs whose form this is not; servers check no CPU."""
    if manifest.precision != "int8":
        return ""
    if GRAPH not in payload.files.values():
        if manifest.cpu_form in (None, "avx2"):
            return ""
        return (
            f"built in the CPU form {manifest.cpu_form}, and the server does not check its CPU: one without VNNI "
            "gives wrong answers; build with --backend openvino --cpu-form avx2 for such servers"
        )
    if server == "openvino":
        return (
            "OpenVINO adds this graph's products exactly on CPUs with VNNI alone: others give wrong answers; for them "
            "serve an engine of --backend openvino --cpu-form avx2, without --onnx"
        )
    if manifest.backend == "onnxruntime":
        return (
            "the server's ONNX Runtime fuses operations of this graph, which our own runtime executes as it is "
            "written: answers are rounded otherwise than those that were judged; --python serves these"
        )
    return ""


def _rounding(
    version: Path, checked: CheckedEngine, payload: Payload, config: ExportConfig, largest: int
) -> tuple[str, ...]:
    """What Triton Inference Server, which cannot set the precision, does on CPUs with bfloat16."""
    if payload.backend != "openvino" or config.server != "triton":
        return ()
    images, _ = read_golden(checked.files, checked.manifest)
    said = bfloat16_check.note(
        version / MODEL, np.resize(images, (largest, *images.shape[1:])), read_payload(checked.files)
    )
    return () if said is None else (said,)


def _digests(folder: Path) -> dict[str, FileDigest]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): FileDigest(sha256_of(path), path.stat().st_size) for path in paths}

"""Model repositories: what is in them, that the servers' own steps work on them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import openvino as ov
import pytest

from rescompile.errors import EngineError, OutputError, UsageError
from rescompile.files import sha256_of
from rescompile.manifest import Batch, CpuForm, FileDigest, read_manifest
from rescompile.runtime.golden import read_golden
from rescompile.runtime.integrity import read_engine
from rescompile.serving.export import ExportConfig, export, notes_on
from rescompile.serving.model_server import check_runs
from rescompile.serving.payload import Server, payload_of
from rescompile.serving.triton_repository import Batching
from tests.backends.engines import manifest
from tests.serving.conftest import Exportable
from tests.serving.model_config_proto import parse
from tests.serving.triton_backend import as_triton_compiles


def config_in(repository: Path) -> Any:
    return parse((repository / "net/config.pbtxt").read_text("utf-8"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def asked(repository: Path, server: str = "triton", **options: Any) -> ExportConfig:
    return ExportConfig(server=server, output=repository, name="net", **options)  # type: ignore[arg-type]


def test_triton_openvino_repository_answers_as_its_backend_runs_it(
    exportable: Exportable, repository: Path
) -> None:
    folder = exportable()
    made = export(folder, asked(repository, instances=2, batching=Batching(queue_delay=300)))
    config = config_in(repository)
    assert (config.name, config.backend, config.max_batch_size, made.max_batch_size) == (
        "net",
        "openvino",
        4,
        4,
    )
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert config.parameters["ENABLE_BATCH_PADDING"].string_value == "YES"
    assert config.parameters["NUM_STREAMS"].string_value == "2"
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    path = repository / "net/1" / config.default_model_filename
    compiled = as_triton_compiles(path, config.max_batch_size, parameters)
    assert list(compiled.input(0).shape) == [4, *config.input[0].dims]
    request = config.model_warmup[0].inputs[config.input[0].name]
    image = np.fromfile(repository / "net/warmup" / request.input_data_file, np.float32).reshape(request.dims)
    answer = compiled([np.stack([image] * 4)])[config.output[0].name]
    images, (logits,) = read_golden(folder, read_manifest(folder))
    np.testing.assert_array_equal(image, images[0])
    np.testing.assert_allclose(answer, logits[[0] * 4], rtol=1e-4, atol=1e-4)


def test_triton_config_follows_the_batch_range(exportable: Exportable, repository: Path) -> None:
    folder = exportable(backend="tensorrt", target="sm_89", environment={"tensorrt": "11.0"})
    made = export(folder, asked(repository))
    config = config_in(repository)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (config.max_batch_size, config.instance_group[0].kind) == (8, 1)
    assert [request.batch_size for request in config.model_warmup] == [1, 4, 8]
    assert (repository / "net/1/model.plan").read_bytes() == b"of TensorRT, perhaps"
    assert "TensorRT 11.0 for sm_89" in made.notes[0]
    assert not config.parameters


def test_fixed_batches_of_tensorrt_are_not_batched_by_the_server(
    exportable: Exportable, repository: Path
) -> None:
    made = export(exportable(backend="tensorrt", batch=Batch(2, 2, 2)), asked(repository))
    config = config_in(repository)
    assert (config.max_batch_size, config.HasField("dynamic_batching"), made.max_batch_size) == (0, False, 2)
    assert (config.input[0].dims[0], config.output[0].dims[0], config.input[0].format) == (2, 2, 0)
    (warm,) = config.model_warmup
    fed = warm.inputs[config.input[0].name]
    assert (repository / "net/warmup" / fed.input_data_file).stat().st_size == 4 * np.prod(fed.dims)


def test_single_images_wait_for_nothing(exportable: Exportable, repository: Path) -> None:
    export(exportable(batch=Batch(1, 1, 4)), asked(repository))
    config = config_in(repository)
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (1, False)
    assert "ENABLE_BATCH_PADDING" not in config.parameters
    assert config.parameters["PERFORMANCE_HINT"].string_value == "LATENCY"


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "triton", "tensorrt", "openvino"])
def test_the_graph_can_be_served_instead_of_any_engine(
    backend: str, exportable: Exportable, repository: Path
) -> None:
    folder = exportable(backend=backend)
    made = export(folder, asked(repository, onnx=True))
    config = config_in(repository)
    session = onnxruntime.InferenceSession(repository / "net/1" / config.default_model_filename)
    fed, answered = session.get_inputs()[0], session.get_outputs()[0]
    assert config.backend == "onnxruntime"
    assert (fed.name, fed.shape[1:]) == (config.input[0].name, list(config.input[0].dims))
    assert not isinstance(fed.shape[0], int), "the server wants a free batch dimension"
    assert answered.name == config.output[0].name
    assert f"not the {backend} engine" in made.notes[0]


@pytest.mark.parametrize(
    ("backend", "python"), [("tensorrt-rtx", False), ("triton", False), ("openvino", True)]
)
def test_engines_without_a_library_on_the_server_run_in_our_runtime(
    backend: str, python: bool, exportable: Exportable, repository: Path
) -> None:
    folder = exportable(backend=backend, batch=Batch(2, 4, 8))
    made = export(folder, asked(repository, python=python))
    config = config_in(repository)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("python", "model.py", 8)
    assert "install rescompile" in made.notes[0]
    served = repository / "net/1/engine"
    assert read_engine(served).manifest == read_manifest(folder), "complete, by its hashes"
    assert {path.name for path in served.iterdir()} == {path.name for path in folder.iterdir()}
    compile((repository / "net/1/model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize(
    ("server", "backend", "form", "own", "said"),
    [
        ("openvino", "openvino", "vnni", True, "one without VNNI gives wrong answers"),
        ("openvino", "openvino", "avx2", True, ""),
        ("openvino", "openvino", "avx2", False, "exactly on CPUs with VNNI alone"),
        ("triton", "onnxruntime", "amx", True, "one without VNNI gives wrong answers"),
        ("openvino", "onnxruntime", "vnni", True, "one without VNNI gives wrong answers"),
        ("triton", "onnxruntime", "avx2", False, "rounded otherwise than those that were judged"),
        ("triton", "openvino", "avx2", False, ""),
    ],
)
def test_servers_check_no_cpu_so_the_export_says_what_others_compute(
    server: Server, backend: str, form: CpuForm, own: bool, said: str, tmp_path: Path
) -> None:
    own_files = {"openvino": "model.xml", "onnxruntime": "onnxruntime.onnx"}
    digest = FileDigest("0" * 64, 1)
    files = dict.fromkeys(("model.onnx", "model.bin", *([own_files[backend]] if own else [])), digest)
    described = msgspec.structs.replace(manifest("int8", backend, Batch(1, 1, 8)), cpu_form=form, files=files)
    payload = payload_of(described, server, onnx=not own)
    found = notes_on(described, payload, server)
    assert said in " ".join(found)
    assert len(found) == bool(said) + (payload.backend != backend)


def test_a_graph_that_openvino_does_not_run_is_refused() -> None:
    with pytest.raises(EngineError, match=r"OpenVINO does not run the graph .* without --onnx"):
        check_runs(b"no graph")


@pytest.mark.parametrize("instances", [1, 3])
def test_model_server_repository_runs_with_its_settings(
    instances: int, exportable: Exportable, repository: Path
) -> None:
    folder = exportable()
    export(folder, asked(repository, "openvino", instances=instances))
    (entry,) = json.loads((repository / "config.json").read_bytes())["model_config_list"]
    config = entry["config"]
    assert entry.keys() == {"config"}
    assert config.keys() <= {"name", "base_path", "target_device", "plugin_config", "nireq"}
    assert (config["name"], config["target_device"], config.get("nireq", 1)) == ("net", "CPU", instances)
    (version,) = (repository / config["base_path"]).iterdir()
    assert version.name == "1"
    assert {path.name for path in version.iterdir()} == {"model.xml", "model.bin"}
    compiled = ov.compile_model(version / "model.xml", config["target_device"], config["plugin_config"])
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
    images, (logits,) = read_golden(folder, read_manifest(folder))
    np.testing.assert_allclose(compiled([images])[0], logits, rtol=1e-4, atol=1e-4)


def test_labels_are_one_a_line_whatever_their_names(exportable: Exportable, repository: Path) -> None:
    names = ("a\nb", "  c\t d ", "猫", *(f"class {index}" for index in range(3, 10)))
    count = len(read_manifest(folder := exportable()).classes)
    manifest = read_manifest(folder)
    output = msgspec.structs.replace(manifest.outputs[0], labels=names[:count])
    manifest = msgspec.structs.replace(manifest, outputs=(output,))
    manifest.write(folder)
    export(folder, asked(repository))
    lines = (repository / "net/labels.txt").read_text("utf-8").splitlines()
    assert lines[:3] == ["a b", "c d", "猫"]
    assert len(lines) == count
    assert config_in(repository).output[0].label_filename == "labels.txt"


def test_the_record_names_engine_and_files(exportable: Exportable, repository: Path) -> None:
    folder = exportable()
    made = export(folder, asked(repository))
    read = json.loads((repository / "export.json").read_bytes())
    assert read == json.loads(msgspec.json.encode(made))
    assert read["engine_sha256"] == read_manifest(folder).sha256
    for name, digest in read["files"].items():
        assert sha256_of(repository / name) == digest["sha256"]
    present = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    assert present == {*read["files"], "export.json"}


@pytest.mark.parametrize(
    ("backend", "server", "said"),
    [
        ("tensorrt-rtx", "openvino", "does not run tensorrt-rtx engines; pass --server triton, or --onnx"),
        ("triton", "openvino", "does not run triton engines; pass --server triton, or --onnx"),
        ("tensorrt", "openvino", "does not run tensorrt engines; pass --server triton, or --onnx"),
    ],
)
def test_engines_that_no_server_runs_are_refused(
    backend: str, server: str, said: str, exportable: Exportable, repository: Path
) -> None:
    folder = exportable(backend=backend)
    with pytest.raises(EngineError, match=said):
        export(folder, asked(repository, server))
    assert not repository.exists()


@pytest.mark.parametrize(
    ("backend", "batch", "server", "options", "said"),
    [
        ("openvino", Batch(1, 4, 8), "triton", {"max_batch": 9}, "--max-batch 9: this engine takes 1 to 8"),
        ("openvino", Batch(2, 4, 8), "triton", {"max_batch": 1}, "--max-batch 1: this engine takes 2 to 8"),
        (
            "tensorrt",
            Batch(4, 4, 4),
            "triton",
            {"max_batch": 8},
            "takes exactly 4 images; build with --batch 1:4:8",
        ),
        (
            "openvino",
            Batch(1, 4, 8),
            "openvino",
            {"max_batch": 4},
            "--max-batch and --queue-delay are for --server",
        ),
        ("openvino", Batch(1, 4, 8), "openvino", {"queue_delay": 5}, "runs each request as it comes"),
    ],
)
def test_batching_that_cannot_be_is_a_usage_error(
    backend: str, batch: Batch, server: str, options: Any, said: str, exportable: Exportable, repository: Path
) -> None:
    folder = exportable(backend=backend, batch=batch)
    with pytest.raises(UsageError, match=said):
        export(folder, asked(repository, server, batching=Batching(**options)))
    assert not any(path.name.startswith(".repository") for path in repository.parent.iterdir())


def test_ranges_without_a_single_image_are_refused(exportable: Exportable, repository: Path) -> None:
    folder = exportable(backend="tensorrt", batch=Batch(2, 4, 8))
    with pytest.raises(EngineError, match="the server may have only one; build with --batch 1:4:8"):
        export(folder, asked(repository))


def test_failed_engines_need_force(exportable: Exportable, repository: Path) -> None:
    folder = exportable(passed=False)
    with pytest.raises(EngineError, match=r"failed its limits .*; build one that passes, or pass --force"):
        export(folder, asked(repository))
    assert not export(folder, asked(repository, force=True)).engine_passed


def test_damaged_engines_and_missing_payloads_are_refused(exportable: Exportable, repository: Path) -> None:
    folder = exportable()
    manifest = read_manifest(folder)
    files = {name: digest for name, digest in manifest.files.items() if name != "model.onnx"}
    msgspec.structs.replace(manifest, files=files).write(folder)
    with pytest.raises(EngineError, match=r"does not list model\.onnx, which the server would run"):
        export(folder, asked(repository, onnx=True))
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(EngineError, match=r"model\.bin has 0 bytes"):
        export(folder, asked(repository))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "two words"])
def test_names_that_are_no_folder_are_refused(name: str, exportable: Exportable, repository: Path) -> None:
    config = ExportConfig(server="triton", output=repository, name=name or " ")
    with pytest.raises(UsageError, match="is not a model name"):
        export(exportable(), config)


def test_only_an_earlier_export_is_replaced(exportable: Exportable, repository: Path) -> None:
    folder = exportable()
    first = export(folder, ExportConfig(server="triton", output=repository))
    assert first.name == "residual-fp32"
    with pytest.raises(OutputError, match="exists already; pass --force"):
        export(folder, asked(repository))
    export(folder, asked(repository, force=True))
    assert {path.name for path in repository.iterdir()} == {"net", "export.json"}
    with pytest.raises(OutputError, match=r"something other than an exported repository \(no export\.json\)"):
        export(folder, asked(folder, force=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"instances": 0}, "--instances 0 leaves no instance"),
        ({"batching": Batching(queue_delay=-1)}, "--queue-delay -1 is negative"),
        ({"python": True, "onnx": True}, "--python serves an engine by our runtime, .* without --onnx"),
    ],
)
def test_numbers_that_no_server_takes_are_refused(
    fields: dict[str, Any], said: str, repository: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        ExportConfig(server="triton", output=repository, **fields)
    assert not repository.exists()

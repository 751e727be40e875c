"""The CPU engine gives the reference's answers, really runs INT8, and says what it cannot do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rescompile.backends.base import BuildRequest, RunOptions
from rescompile.backends.inspection import residual_adds
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino import compile as compiling
from rescompile.backends.openvino.backend import OpenVino
from rescompile.backends.openvino.compile import compile_model
from rescompile.errors import BackendError
from rescompile.manifest import Batch, Precision, TensorSpec
from rescompile.metrics import relative_rms
from tests.backends.engines import RANGE, build, manifest, request, taking_pixels
from tests.backends.graphs import IMAGE_SHAPE, RESIDUAL_ADDS, residual_net, sample_images, saved

FORM = "CPU form avx2 (what this CPU computes fastest): exact on every x86 CPU"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("amax_factor", [1.0, 0.3])
def test_logits_are_the_references(tmp_path: Path, precision: Precision, amax_factor: float) -> None:
    path = saved(residual_net(precision, amax_factor=amax_factor, channels=32), tmp_path)
    OpenVino().build(request(path, precision), tmp_path)
    found = OpenVino().load(tmp_path, manifest(precision, "openvino"))(sample_images(8))
    expected = reference_session(path, optimize=False)(sample_images(8))
    # fp16: the reference rounds to half after each layer, this engine does not
    assert relative_rms(expected, found) < {"fp32": 1e-5, "fp16": 1e-3, "int8": 5e-3}[precision]


def test_the_payload_is_two_files_with_fused_adds_and_int8_layers(tmp_path: Path) -> None:
    payload = build(tmp_path, "int8")
    assert payload.files == ("model.xml", "model.bin")
    assert all((tmp_path / name).stat().st_size > 0 for name in payload.files)
    assert payload.fused_adds == RESIDUAL_ADDS
    assert payload.notes == (FORM,)


def test_layers_that_do_not_run_as_int8_are_noted(tmp_path: Path) -> None:
    model = residual_net("int8")
    for node in model.graph.node:  # a float activation beside an INT8 weight
        if node.name == "layer1.0.conv2":
            node.input[0] = "layer1.0.relu1"
    held = [node for node in model.graph.node if not node.name.startswith("layer1.0.relu1_")]
    del model.graph.node[:]
    model.graph.node.extend(held)
    payload = OpenVino().build(request(saved(model, tmp_path), "int8"), tmp_path)
    assert payload.notes == (FORM, "1 of 7 quantized layers do not run as INT8 on this CPU")


def test_layers_that_are_meant_to_be_float_are_not_noted(tmp_path: Path) -> None:
    assert OpenVino().build(request(saved(residual_net("fp32"), tmp_path), "int8"), tmp_path).notes == (FORM,)


def test_fp16_says_that_it_computes_in_fp32(tmp_path: Path) -> None:
    assert "computed in FP32" in build(tmp_path, "fp16").notes[0]


def test_every_layer_is_told_to_infer_in_f32(tmp_path: Path) -> None:
    build(tmp_path, "fp16")
    compiled = compile_model(tmp_path / "model.xml")
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_an_unknown_tuning_option_is_left_out_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "TUNING", {"OPTION_OF_ANOTHER_VERSION": "YES"})
    assert "does not know OPTION_OF_ANOTHER_VERSION" in build(tmp_path, "int8").notes[0]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_one_engine_serves_every_batch_size(tmp_path: Path, count: int) -> None:
    build(tmp_path, "fp32")
    runner = OpenVino().load(tmp_path, manifest("fp32", "openvino"))
    whole = runner(sample_images(8))
    np.testing.assert_allclose(runner(sample_images(8)[:count]), whole[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("batch", "refused"), [(RANGE, 9), (Batch(2, 2, 4), 1), (Batch(4, 4, 4), 3)])
def test_a_batch_outside_of_the_range_is_refused(tmp_path: Path, batch: Batch, refused: int) -> None:
    build(tmp_path, "fp32", batch=batch)
    runner = OpenVino().load(tmp_path, manifest("fp32", "openvino", batch))
    with pytest.raises(BackendError, match=f"{refused} images at once.*takes {batch.min} to {batch.max}"):
        runner(sample_images(refused))
    assert len(runner(sample_images(batch.max))) == batch.max


def test_logits_belong_to_the_caller(tmp_path: Path) -> None:
    build(tmp_path, "fp32")
    runner = OpenVino().load(tmp_path, manifest("fp32", "openvino"))
    first = runner(sample_images(2))
    kept = first.copy()
    runner(-sample_images(2))
    np.testing.assert_array_equal(first, kept)


def test_images_may_be_read_only(tmp_path: Path) -> None:
    build(tmp_path, "fp32")
    images = sample_images(2)
    images.flags.writeable = False
    assert OpenVino().load(tmp_path, manifest("fp32", "openvino"))(images).shape == (2, 10)


@pytest.mark.parametrize("form", ["transposed", "every other image", "reversed", "column-major"])
def test_images_need_not_be_contiguous(tmp_path: Path, form: str) -> None:
    """The runner copies such images, and the copy must live as long as the inference does."""
    runner = OpenVino().load(build(tmp_path, "fp32") and tmp_path, manifest("fp32", "openvino"))
    images = sample_images(8)
    given = {
        "transposed": np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "every other image": np.repeat(images, 2, axis=0)[::2],
        "reversed": np.ascontiguousarray(images[::-1])[::-1],
        "column-major": np.asfortranarray(images),
    }[form]
    assert not given.flags.c_contiguous
    expected = runner(images)
    for _ in range(5):  # freed memory may hold the right values once
        np.testing.assert_array_equal(runner(given), expected)
        np.full_like(images, np.nan)


def test_pixels_go_in_as_uint8(tmp_path: Path) -> None:
    path = saved(taking_pixels(residual_net("int8")), tmp_path)
    side = IMAGE_SHAPE[1]
    asked = BuildRequest(model=path, precision="int8", batch=RANGE, image_shape=(side, side, 3))
    payload = OpenVino().build(asked, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    spec = TensorSpec("images", (-1, side, side, 3), "uint8", "NHWC")
    described = msgspec.structs.replace(manifest("int8", "openvino"), inputs=(spec,))
    found = OpenVino().load(tmp_path, described)(pixels)
    assert relative_rms(reference_session(path, optimize=False)(pixels), found) < 5e-3
    assert payload.fused_adds == RESIDUAL_ADDS


def test_threads_are_passed_on(tmp_path: Path) -> None:
    build(tmp_path, "int8")
    compiled = compile_model(tmp_path / "model.xml", RunOptions(threads=1))
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_closed_runner_says_so(tmp_path: Path) -> None:
    build(tmp_path, "fp32")
    runner = OpenVino().load(tmp_path, manifest("fp32", "openvino"))
    runner.close()
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner(sample_images(1))


def test_a_graph_that_openvino_refuses_is_one_sentence(tmp_path: Path) -> None:
    model = residual_net("fp32")
    model.graph.node[3].op_type = "Wibble"
    path = saved(model, tmp_path)
    with pytest.raises(BackendError, match="OpenVINO cannot read the deployable graph: ") as caught:
        OpenVino().build(request(path, "fp32"), tmp_path)
    assert "\n" not in str(caught.value)
    assert "src/" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_damaged_payload_is_one_sentence(tmp_path: Path, name: str) -> None:
    build(tmp_path, "fp32")
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(BackendError, match=r"OpenVINO cannot load .*model\.xml: ") as caught:
        OpenVino().load(tmp_path, manifest("fp32", "openvino"))
    assert "\n" not in str(caught.value)


FULL_DISK = """
import resource, sys
from pathlib import Path
from rescompile.backends.base import BuildRequest
from rescompile.backends.openvino.backend import OpenVino
from rescompile.errors import OutputError
from rescompile.manifest import Batch
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
asked = BuildRequest(
    model=folder / "model.onnx", precision="fp32", batch=Batch(1, 1, 1), image_shape=(3, 16, 16)
)
try:
    OpenVino().build(asked, folder)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [0, 1000, 50_000])
def test_a_full_disk_is_an_output_error(tmp_path: Path, limit: int) -> None:
    path = saved(residual_net("fp32"), tmp_path)
    assert path.stat().st_size > 50_000
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stderr == ""
    assert "file size limit" in done.stdout
    assert "bytes needed" in done.stdout


def test_residual_adds_are_those_at_the_ends_of_residual_blocks() -> None:
    """``taking_pixels`` adds constants; a feature pyramid's sums are named otherwise."""
    graph = taking_pixels(residual_net("int8"))
    join = graph.graph.node.add()
    join.CopyFrom(next(node for node in graph.graph.node if node.name == "layer2.0.add"))
    join.name = "head2.sum1"
    assert residual_adds(graph) == {"layer1.0.add", "layer2.0.add"}

"""Engines for a range of heights and widths: built, judged, run and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import rescompile
from calibration.preprocess import CIFAR
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.cli.app import app
from rescompile.config import parse_sizes
from rescompile.errors import BackendError, EngineError, GraphError, UsageError
from rescompile.graph.image_sizes import with_open_sizes
from rescompile.manifest import SizeRange, read_manifest
from rescompile.runtime.inputs import at_size
from rescompile.serving.export import ExportConfig, export
from rescompile.serving.triton_repository import Batching
from tests.backends.graphs import residual_net, saved
from tests.graph.variant_blocks import Residual, conv
from tests.serving.model_config_proto import parse
from tests.serving.triton_backend import as_triton_compiles

SIZES = ((12, 12), (24, 24), (12, 24), (17, 23))
"""The ends of the range, and one inside that divides by nothing."""
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)


class Network(nn.Module):
    """A classifier of two residual blocks, of which the second halves the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.ReLU())
        self.layer1, self.layer2 = Residual(8, 8), Residual(8, 16, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer2(self.layer1(self.stem(x))))


def built(folder: Path, network: Any, **options: Any) -> Path:
    common: dict[str, Any] = {"calibration": PIXELS, "effort": "fast", "preprocess": _STEPS, "batch": "1:2:3"}
    # weights are random: classes say nothing
    common["limits"] = rescompile.Limits(max_relative_rms=0.5)
    rescompile.build(network, output=folder, dynamic_size="12:24", **common | options)
    return folder


_STEPS = msgspec.structs.replace(CIFAR, resize=16, crop=16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network of 16 pixels as an ONNX file."""
    return saved(residual_net("fp32"), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def engines(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dynamic")
    torch.manual_seed(0)
    floating: dict[str, Any] = {
        "precision": "fp32",
        "calibration": None,
        "effort": None,
        "validation": PIXELS,
    }
    return {
        "openvino": built(folder / "openvino", plain, backend="openvino"),
        "pixels": built(folder / "pixels", plain, backend="openvino", input_format="uint8-nhwc", batch="2"),
        "onnxruntime": built(folder / "onnxruntime", plain, backend="onnxruntime", **floating),
        "maps": built(folder / "maps", Network(), backend="openvino", outputs=("layer1", "layer2")),
    }


def images(directory: Path, size: tuple[int, int], count: int = 4) -> np.ndarray:
    fed = read_manifest(directory).inputs[0]
    pixels = np.random.default_rng(1).integers(0, 256, (count, *fed.of_size(size)), np.uint8)
    return pixels if fed.dtype == "uint8" else (pixels / np.float32(128) - 1).astype(np.float32)


@pytest.mark.parametrize("name", ["openvino", "pixels", "onnxruntime", "maps"])
def test_every_size_of_the_range_gets_the_graphs_answers(engines: dict[str, Path], name: str) -> None:
    reference = reference_session(engines[name] / "model.onnx", optimize=False)
    with rescompile.load(engines[name]) as engine:
        allowed = engine.manifest.golden_relative_rms
        for size in SIZES:
            given = images(engines[name], size)
            expected = reference.tensors(given)
            for found in (engine(given), engine.submit(given).result()):
                answers = found if isinstance(found, dict) else {"logits": found}
                assert set(answers) == set(expected)
                for output, values in answers.items():
                    assert values.shape == expected[output].shape
                    error = np.square(values - expected[output]).mean() / np.square(expected[output]).mean()
                    assert error**0.5 <= allowed


def test_arrays_that_are_not_contiguous_are_read_right(engines: dict[str, Path]) -> None:
    given = images(engines["openvino"], (12, 24))
    with rescompile.load(engines["openvino"]) as engine:
        turned = np.ascontiguousarray(given.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(engine(turned), engine(given))


def test_manifest_has_the_range_and_outputs_that_follow(engines: dict[str, Path]) -> None:
    whole, maps = read_manifest(engines["pixels"]), read_manifest(engines["maps"])
    assert whole.sizes == maps.sizes == SizeRange((12, 12), (24, 24))
    assert whole.inputs[0].shape == (2, -1, -1, 3)
    assert whole.outputs[0].shape == (2, 10)
    assert [output.shape for output in maps.outputs] == [(-1, 8, -1, -1), (-1, 16, -1, -1)]


def test_report_judges_the_ends_of_the_range(engines: dict[str, Path]) -> None:
    checks = json.loads((engines["openvino"] / "report.json").read_text())["checks"]
    for size in ("12x12", "24x24", "12x24"):
        assert any(check["name"] == f"relative RMS at {size}" for check in checks)
    assert "12x12:24x24" in (engines["openvino"] / "README.md").read_text()


def test_limit_at_one_end_alone_fails_the_verdict(plain: Path, tmp_path: Path) -> None:
    report = rescompile.build(
        plain, calibration=PIXELS, effort="fast", preprocess=_STEPS, dynamic_size="12:24",
        backend="openvino", output=tmp_path / "e", limits=rescompile.Limits(max_relative_rms=1e-6),
    )  # fmt: skip
    assert not report.passed
    assert sum(not check.passed for check in report.checks) == 4


def test_sizes_outside_of_the_range_are_refused_in_words(engines: dict[str, Path]) -> None:
    with rescompile.load(engines["openvino"]) as engine:
        with pytest.raises(
            UsageError, match=r"float32 \[N, 3, 12 to 24, 12 to 24\] .* another --dynamic-size"
        ):
            engine(images(engines["openvino"], (12, 25)))
        with pytest.raises(UsageError, match=r"add the batch dimension with images\[None\]"):
            engine(images(engines["openvino"], (12, 20))[0])
        with pytest.raises(UsageError, match=r"images.transpose\(0, 3, 1, 2\)"):
            engine(images(engines["openvino"], (12, 20)).transpose(0, 2, 3, 1))
        with pytest.raises(
            UsageError, match="size 30 was asked, but this engine takes sizes from 12x12:24x24"
        ):
            engine.preprocess(PIXELS[0], 30)


def test_photographs_are_seen_at_the_size_that_is_asked(engines: dict[str, Path]) -> None:
    with rescompile.load(engines["openvino"]) as engine:
        assert engine.preprocess(PIXELS[0]).shape == (1, 3, 16, 16)
        assert engine.preprocess(PIXELS[0], 20).shape == (1, 3, 20, 20)
        assert engine.preprocess(PIXELS[0], (12, 20)).shape == (1, 3, 12, 20)
        assert len(engine.classify(PIXELS[0], 3, size=20)) == 3


def test_other_golden_answers_are_checked(engines: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(engines["onnxruntime"], tmp_path / "e")
    path = tmp_path / "e/golden.npz"
    with np.load(path) as arrays:
        named = dict(arrays)
    assert named["other_images"].shape == (1, 3, 12, 24)
    np.savez(path, **named | {"other_logits": -named["other_logits"]})
    write_hashed_manifest(tmp_path / "e", read_manifest(tmp_path / "e"))
    with pytest.raises(EngineError, match="does not reproduce its golden answers"):
        rescompile.load(tmp_path / "e")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sizes": None}, "does not say which sizes"),
        ({"sizes": SizeRange((20, 12), (24, 24))}, "do not fit its input"),
        ({"sizes": SizeRange((12, 12), (24, 11))}, "do not fit its input"),
        ({"sizes": SizeRange((8, 8), (24, 24))}, "does not fit the manifest"),
    ],
)
def test_manifests_that_lie_about_sizes_are_refused(
    engines: dict[str, Path], tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    import shutil

    shutil.copytree(engines["openvino"], tmp_path / "e")
    changed = msgspec.structs.replace(read_manifest(tmp_path / "e"), **fields)
    write_hashed_manifest(tmp_path / "e", changed)
    with pytest.raises(EngineError, match=words):
        rescompile.load(tmp_path / "e")


class Fixed(nn.Module):
    """A classifier that reads every place of its map."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(conv(3, 8), nn.ReLU(), Residual(8, 8)), nn.Linear(8 * 256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).flatten(1))


class ByParity(nn.Module):
    """A padding that depends on whether the side is even."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Network(), nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.head(x) if x.shape[2] % 2 == 0 else x)


def test_networks_of_one_size_are_refused_with_the_node(tmp_path: Path) -> None:
    with pytest.raises(
        GraphError, match=r"images of 12x12: node '\S+' \((Gemm|MatMul)\) is made for one size"
    ):
        built(tmp_path / "e", Fixed(), backend="onnxruntime")


def test_functions_that_depend_on_the_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="computes something else than at its own size"):
        built(tmp_path / "e", ByParity(), backend="onnxruntime", precision="fp32", calibration=None)


def test_server_gets_open_sides_and_single_images(engines: dict[str, Path], tmp_path: Path) -> None:
    made = export(engines["openvino"], ExportConfig(server="triton", output=tmp_path / "r", name="net"))
    config = parse((tmp_path / "r/net/config.pbtxt").read_text("utf-8"))
    assert made.max_batch_size == config.max_batch_size == 1
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.model_warmup[0].inputs["input"].dims) == [3, 16, 16]
    compiled = as_triton_compiles(tmp_path / "r/net/1/model.xml", 1, {})
    with rescompile.load(engines["openvino"]) as engine:
        for size in SIZES:
            given = images(engines["openvino"], size, 1)
            np.testing.assert_allclose(compiled([given])["logits"], engine(given), rtol=1e-3, atol=1e-4)
    with pytest.raises(
        UsageError, match="--max-batch 2: the server feeds images of several sizes one by one"
    ):
        export(
            engines["openvino"],
            ExportConfig(server="triton", output=tmp_path / "s", batching=Batching(max_batch=2)),
        )
    with pytest.raises(EngineError, match="takes 2 images or more"):
        export(engines["pixels"], ExportConfig(server="triton", output=tmp_path / "s"))


def test_triton_refuses_a_range_before_calibration(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"images of more than one size \(--dynamic-size\)"):
        built(tmp_path / "e", plain, backend="triton", target="sm_90")


def test_crop_outside_of_the_range_is_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dynamic-size 20x20:24x24 leaves out 16, the size that"):
        rescompile.build(
            plain,
            calibration=PIXELS,
            preprocess=_STEPS,
            dynamic_size="20:24",
            output=tmp_path / "e",
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("160", "write MIN:MAX"), ("160:200:320", "write MIN:MAX"), ("a:b", "write MIN:MAX"),
        ("320:160", "1 <= MIN <= MAX <= 8192"), ("160x320:320x160", "in height and in width"),
        ("0:9", "1 <= MIN"), ("1:9000", "8192"), ("64:64", "is one size; pass --size 64"),
    ],
)  # fmt: skip
def test_ranges_that_are_none_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_sizes(text)


def test_ranges_are_read() -> None:
    assert parse_sizes(None) is None
    assert parse_sizes("160:320") == SizeRange((160, 160), (320, 320))
    assert parse_sizes("128x160:512X640") == SizeRange((128, 160), (512, 640))
    assert SizeRange((4, 6), (8, 6)).ends == ((4, 6), (8, 6))


def test_images_are_sampled_in_either_layout() -> None:
    from rescompile.manifest import TensorSpec

    planes = np.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    found = at_size(planes, TensorSpec("x", (-1, 3, -1, -1), "float32", "NCHW"), (2, 12))
    np.testing.assert_array_equal(found, planes[:, :, ::2].repeat(2, 3))
    pixels = at_size(planes.transpose(0, 2, 3, 1), TensorSpec("x", (-1, -1, -1, 3), "uint8", "NHWC"), (2, 12))
    np.testing.assert_array_equal(pixels, found.transpose(0, 2, 3, 1))


def test_open_graphs_forget_the_shapes_that_follow() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (uint8[N,16,16,3] x) => (uint8[N,3,16,16] y) { y = Transpose<perm=[0,3,1,2]>(x) }
    """)
    opened = with_open_sizes(model).graph
    assert [dim.dim_param or dim.dim_value for dim in opened.input[0].type.tensor_type.shape.dim] == [
        "N",
        "H",
        "W",
        3,
    ]
    assert [dim.dim_param or dim.dim_value for dim in opened.output[0].type.tensor_type.shape.dim] == [
        "N", 3, "y.H", "y.W"
    ]  # fmt: skip


def test_commands_take_the_size(engines: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    photo, run = tmp_path / "photo.png", CliRunner().invoke
    Image.fromarray(PIXELS[0]).save(photo)
    engine = str(engines["openvino"])
    answered = run(app, ["run", engine, str(photo), "--size", "20x14", "--json"])
    assert answered.exit_code == 0, answered.output
    assert run(app, ["run", engine, str(photo), "--size", "40"]).exit_code == 1
    measured = run(
        app,
        ["bench", engine, "--size", "24x12", "--batch", "1", "--seconds", "0.1", "--starts", "0", "--json"],
    )
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["engine"]["input"] == "float32 NCHW [-1, 3, -1, -1] at 24x12"
    inspected = run(app, ["inspect", engine])
    assert "12x12:24x24" in inspected.output
    np.savez(tmp_path / "v.npz", images=PIXELS, labels=np.arange(8))
    verified = run(
        app, ["verify", engine, "--validation-set", str(tmp_path / "v.npz"), "--max-relative-rms", "0.9"]
    )
    assert "relative RMS at 12x24" in verified.output
    compared = run(app, ["compare", engine, "--images", str(tmp_path / "v.npz")])
    assert "measured on 8 images" in compared.output

"""``rescompile compare``: figures of every block, the block where two sides diverge, and refusals."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

import rescompile
from calibration.images import open_image_set
from calibration.preprocess import CIFAR, normalize
from rescompile.accuracy import compare as module
from rescompile.accuracy.comparands import ComparandName, logits_comparand, open_comparand, parse_comparand
from rescompile.accuracy.compare import ROUNDING_DB, Comparison, ComparisonReport, compare
from rescompile.accuracy.error_by_block import SQNR_CEILING_DB
from rescompile.accuracy.graph_description import saturated_elements
from rescompile.backends import get_backend
from rescompile.backends.base import BuildRequest
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import BackendUnavailable, EngineError, GraphError
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.metadata import set_factors
from rescompile.graph.shared.topology import quantized_tensors
from rescompile.manifest import GRAPH, Batch, TensorSpec, read_manifest
from rescompile.progress import Silent
from rescompile.report import Limits
from rescompile.runtime.golden import golden_bytes
from rescompile.runtime.integrity import read_engine
from tests.backends import engines
from tests.commands import call
from tests.graph.conftest import folded, run

Say = pytest.CaptureFixture[str]
BLOCKS = ["stem", *(f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)), "fc"]
EXACT = 100.0
"""dB above which two executions differ by the rounding of float sums."""


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine directories of one CIFAR ResNet-20 with option A shortcuts: int8, uint8 and fp16."""
    folder = tmp_path_factory.mktemp("compare")
    images = small / "images.npz"
    common = BuildConfig(
        model=ModelConfig(weights=str(small / "net.pth")),
        validation_set=images,
        limits=Limits(max_relative_rms=0.9),
        backend="openvino",
    )
    calibrated = replace(common, precision="int8", calibration=CalibrationConfig(images=images))
    for name, config in {
        "int8": calibrated,
        "uint8": replace(calibrated, input_format="uint8-nhwc", batch=Batch(2, 2, 2)),
        "fp16": replace(common, precision="fp16"),
    }.items():
        assert rescompile.build(replace(config, output=folder / name))
    return folder


def variant(built: Path, target: Path, **changes: object) -> Path:
    """The fp16 engine with other fields in its manifest, and without files that the manifest does not list."""
    shutil.copytree(built / "fp16", target)
    manifest = msgspec.structs.replace(read_manifest(target), **changes)
    for path in target.iterdir():
        if path.name not in manifest.files:
            path.unlink()
    manifest.write(target)
    return target


def line_up(a: object, b: object, small: Path, **options: object) -> ComparisonReport:
    images = small / "images.npz"
    return compare(
        str(a), None if b is None else str(b), images=images, limit=3, progress=Silent(), **options
    )  # type: ignore[arg-type]


def only(report: ComparisonReport) -> Comparison:
    (comparison,) = report.comparisons
    return comparison


def sqnr(comparison: Comparison) -> dict[str, float]:
    return {block.block: block.sqnr_db for block in comparison.blocks}


def edited(model: onnx.ModelProto, conv: str, change: object) -> None:
    """Replace the weight of ``conv`` by ``change(weight)``, through its DequantizeLinear where it has one."""
    made = {node.output[0]: node for node in model.graph.node}
    name = made[conv].input[1]
    name = made[name].input[0] if name in made else name
    (tensor,) = [each for each in model.graph.initializer if each.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))  # type: ignore[operator]


def engine_of(model: onnx.ModelProto, directory: Path) -> Path:
    """A whole OpenVINO engine directory around ``model``, which takes float32 [N, 3, 32, 32]."""
    directory.mkdir()
    onnx.save(model, directory / "model.onnx")
    request = BuildRequest(
        model=directory / "model.onnx", precision="int8", batch=Batch(1, 1, 4), image_shape=(3, 32, 32)
    )
    get_backend("openvino").build(request, directory)
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    golden = golden_bytes(images, reference_session(directory / "model.onnx", optimize=False)(images))
    (directory / "golden.npz").write_bytes(golden)
    base = engines.manifest("int8", "openvino", Batch(1, 1, 4))
    fed = TensorSpec("input", (-1, 3, 32, 32), "float32", "NCHW")
    write_hashed_manifest(directory, msgspec.structs.replace(base, inputs=(fed,), preprocess=CIFAR))
    return directory


def test_a_directory_alone_is_reference_against_graph_against_engine(built: Path, small: Path) -> None:
    report = line_up(built / "int8", None, small)
    quantization, execution = report.comparisons
    assert [block.block for block in quantization.blocks] == BLOCKS
    assert [block.block for block in execution.blocks] == BLOCKS
    assert 20 < sqnr(quantization)["layer3.2"] < 45
    assert sqnr(execution)["stem"] > EXACT
    assert all(sqnr(execution)[block] > sqnr(quantization)[block] for block in BLOCKS)
    assert quantization.b == execution.a
    assert (report.images, report.image_source, report.notes) == (3, "images.npz", ())


def test_a_side_against_itself_has_no_error(built: Path, small: Path) -> None:
    comparison = only(line_up(f"{built / 'int8'}:graph", built / "int8/model.onnx", small))
    assert set(sqnr(comparison).values()) == {SQNR_CEILING_DB}
    assert all(block.cosine == pytest.approx(1) and block.finite for block in comparison.blocks)
    assert (comparison.parts_at, comparison.largest_drop) == (None, None)


def test_pixels_inside_the_engine_give_the_same_blocks(built: Path, small: Path) -> None:
    floats, pixels = (line_up(built / name, None, small) for name in ("int8", "uint8"))
    for one, other in zip(floats.comparisons, pixels.comparisons, strict=True):
        assert list(sqnr(other).values())[:-1] == pytest.approx(list(sqnr(one).values())[:-1], abs=15)
    assert sqnr(only(line_up(f"{built / 'int8'}:graph", f"{built / 'uint8'}:graph", small)))["stem"] > 60


def test_two_engines_of_different_precision(built: Path, small: Path) -> None:
    comparison = only(line_up(built / "fp16", built / "int8", small))
    quantization = line_up(built / "int8", None, small).comparisons[0]
    assert sqnr(comparison) == pytest.approx(sqnr(quantization), abs=1.5)
    assert all(block.saturation_a is block.saturation_b is None for block in comparison.blocks)


def test_half_precision_is_compared_with_its_reference(built: Path, small: Path) -> None:
    rounding, execution = line_up(built / "fp16", None, small).comparisons
    assert all(ROUNDING_DB < value < 90 for value in sqnr(rounding).values())
    assert all(value > 80 for value in sqnr(execution).values())
    assert rounding.largest_drop is execution.largest_drop is None


@pytest.mark.parametrize("block", ["layer1.0", "layer2.1", "layer3.2"])
def test_a_damaged_block_is_the_first_one_named(built: Path, small: Path, tmp_path: Path, block: str) -> None:
    model = onnx.load(built / "int8/model.onnx")
    edited(model, f"{block}.conv2", lambda weight: np.random.default_rng(0).permutation(weight)[:, ::-1])
    onnx.save(model, tmp_path / "damaged.onnx")
    comparison = only(line_up(built / "int8", tmp_path / "damaged.onnx", small))
    assert comparison.parts_at == block
    assert comparison.largest_drop is not None
    assert comparison.largest_drop.block == block
    before = BLOCKS[BLOCKS.index(block) - 1]
    assert comparison.largest_drop.after == before
    high = min(sqnr(comparison)[before], ROUNDING_DB)
    assert comparison.largest_drop.drop_db == pytest.approx(high - sqnr(comparison)[block])


def test_the_threshold_moves_the_place_where_they_part(built: Path, small: Path) -> None:
    sides = (f"{built / 'int8'}:fp32", f"{built / 'int8'}:graph")
    values = sqnr(only(line_up(*sides, small)))
    for part_db in (50.0, 34.0, 31.0, -10.0):
        expected = next((block for block, value in values.items() if value < part_db), None)
        assert only(line_up(*sides, small, part_db=part_db)).parts_at == expected


def test_saturation_is_counted_as_numpy_counts_it(built: Path, small: Path) -> None:
    comparison = only(line_up(f"{built / 'int8'}:fp32", f"{built / 'int8'}:graph", small))
    model = onnx.load(built / "int8/model.onnx")
    pixels = next(open_image_set(small / "images.npz", limit=3).batches(CIFAR, 3)).images
    steps = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    found = run(model, normalize(pixels, CIFAR), list(steps.values()))
    for block in comparison.blocks:
        members = [name for name in steps if name.startswith(f"{block.block}.")]
        members = {"stem": ["relu1"], "fc": ["flatten"]}.get(block.block, members)
        shares = {name: float(np.mean(np.abs(found[steps[name]].astype(int)) >= 127)) for name in members}
        assert block.saturation_a is None
        assert block.saturation_b is not None
        assert block.saturation_b.share == pytest.approx(max(shares.values()))
        assert shares[block.saturation_b.tensor] == max(shares.values())


def test_both_ends_of_int8_are_saturated() -> None:
    values = np.array([127, -127, -128, 126, -126, 0], np.int8)
    assert saturated_elements(values, full_range=False) == (3, 6)
    assert saturated_elements(values, full_range=True) == (1, 6), "-128 is zero there"


@pytest.fixture(scope="module")
def equalized() -> onnx.ModelProto:
    """The option B ResNet-20 whose first stage computes channels divided by factors."""
    model = onnx.ModelProto()
    model.CopyFrom(folded("resnet20-cifar", "B"))
    factors = np.linspace(0.25, 4, 16, dtype=np.float32)

    def divide(weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return weight / factors.reshape(-1, *[1] * (weight.ndim - 1))

    for name in ("conv1", *(f"layer1.{index}.conv2" for index in range(3))):
        edited(model, name, divide)
        bias = next(node.input[2] for node in model.graph.node if node.output[0] == name)
        (tensor,) = [each for each in model.graph.initializer if each.name == bias]
        tensor.CopyFrom(numpy_helper.from_array(divide(numpy_helper.to_array(tensor)), bias))
    readers = [n for n in model.graph.node if n.op_type == "Conv"
               and n.input[0] in ("relu1", *(f"layer1.{index}.relu" for index in range(3)))]  # fmt: skip
    for node in readers:
        edited(model, node.output[0], lambda weight: weight * factors.reshape(1, -1, 1, 1))
    assert len(readers) == 5
    scaled = ("relu1", "layer1.0.relu", "layer1.1.relu", "layer1.2.relu")
    set_factors(model, dict.fromkeys(scaled, factors))
    return model


def test_an_equalized_graph_compares_as_equal(
    equalized: onnx.ModelProto, small: Path, tmp_path: Path
) -> None:
    onnx.save(folded("resnet20-cifar", "B"), tmp_path / "plain.onnx")
    onnx.save(equalized, tmp_path / "equalized.onnx")
    report = line_up(tmp_path / "plain.onnx", tmp_path / "equalized.onnx", small)
    assert all(value > EXACT for value in sqnr(only(report)).values())
    assert "no manifest.json says" in report.notes[0]
    forgotten = onnx.ModelProto.FromString(equalized.SerializeToString())
    set_factors(forgotten, {})
    onnx.save(forgotten, tmp_path / "forgotten.onnx")
    without = sqnr(only(line_up(tmp_path / "plain.onnx", tmp_path / "forgotten.onnx", small)))
    assert without["layer1.2"] < 20 < EXACT < without["layer2.0"]


def scales(model: onnx.ModelProto, small: Path, part: float) -> dict[str, float]:
    """Scales of every quantized tensor for ``part`` of its range on the images, and for all of the input's."""
    pixels = next(open_image_set(small / "images.npz", limit=3).batches(CIFAR, 3)).images
    names = quantized_tensors(model)
    seen = run(model, normalize(pixels, CIFAR), names)
    return {name: (1 if name == "input" else part) * float(np.abs(seen[name]).max()) / 127 for name in names}


def test_the_engine_of_an_equalized_graph_is_in_the_same_unit(
    equalized: onnx.ModelProto, small: Path, tmp_path: Path
) -> None:
    onnx.save(folded("resnet20-cifar", "B"), tmp_path / "plain.onnx")
    directory = engine_of(quantize(equalized, scales(equalized, small, 0.5)), tmp_path / "engine")
    graph = only(line_up(tmp_path / "plain.onnx", f"{directory}:graph", small))
    engine = only(line_up(f"{directory}:graph", directory, small))
    assert sqnr(engine)["stem"] > EXACT
    assert min(sqnr(engine).values()) > 30
    assert sqnr(graph)["stem"] > 25


def test_what_an_engine_clips_early_is_no_difference_to_its_graph(small: Path, tmp_path: Path) -> None:
    model = folded("resnet20-cifar", "B")
    onnx.save(model, tmp_path / "plain.onnx")
    directory = engine_of(quantize(model, scales(model, small, 0.3)), tmp_path / "engine")
    against_graph = only(line_up(f"{directory}:graph", directory, small))
    assert sqnr(against_graph)["stem"] > EXACT
    saturated = against_graph.blocks[0].saturation_a
    assert saturated is not None
    assert saturated.share > 0.001
    against_reference = only(line_up(tmp_path / "plain.onnx", directory, small))
    graph = only(line_up(tmp_path / "plain.onnx", f"{directory}:graph", small))
    assert sqnr(against_reference)["stem"] < sqnr(graph)["stem"] - 3


def test_values_that_overflow_are_named(built: Path, small: Path, tmp_path: Path) -> None:
    model = onnx.load(built / "fp16/model.onnx")
    edited(model, "layer2.0.conv2", lambda weight: np.full_like(weight, 6e4))
    onnx.save(model, tmp_path / "hot.onnx")
    comparison = only(line_up(f"{built / 'fp16'}:fp32", tmp_path / "hot.onnx", small))
    assert comparison.parts_at == "layer2.0"
    (block,) = [each for each in comparison.blocks if each.block == "layer2.0"]
    assert (block.finite, block.sqnr_db, block.cosine) == (False, -SQNR_CEILING_DB, 0.0)


def test_a_library_that_hides_inner_tensors_shows_its_logits(
    built: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(name: ComparandName):
        if name.part != "engine":
            return open_comparand(name)
        return logits_comparand(read_engine(name.path, also=(GRAPH,)), title="hidden")

    monkeypatch.setattr(module, "open_comparand", opened)
    report = line_up(built / "uint8", None, small)
    assert [block.block for block in report.comparisons[1].blocks] == ["fc"]
    assert report.comparisons[1].blocks[0].sqnr_db > 25
    assert "hidden shows its logits alone" in report.notes[0]


def test_an_engine_that_cannot_run_here_is_left_out_and_said(
    built: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(name: ComparandName):
        if name.part == "engine":
            raise BackendUnavailable("no GPU")
        return open_comparand(name)

    monkeypatch.setattr(module, "open_comparand", opened)
    report = line_up(built / "int8", None, small)
    assert len(report.comparisons) == 1
    assert report.notes == ("the engine is left out: no GPU",)
    with pytest.raises(BackendUnavailable):
        line_up(built / "fp16", built / "int8", small)


def test_parts_that_are_not_there_or_no_other_are_left_out(built: Path, small: Path, tmp_path: Path) -> None:
    files = {
        name: each for name, each in read_manifest(built / "fp16").files.items() if name != "reference.onnx"
    }
    bare = variant(built, tmp_path / "bare", backend="onnxruntime", files=files)
    report = line_up(bare, None, small)
    assert set(sqnr(only(report)).values()) == {SQNR_CEILING_DB}
    assert "--no-reference" in report.notes[0]
    with pytest.raises(EngineError, match=r"reference\.onnx is not there; it was built with --no-reference"):
        line_up(f"{bare}:fp32", built / "int8", small)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a:fp32").mkdir()
    assert parse_comparand(f"{tmp_path}/a:fp32") == ComparandName(tmp_path / "a:fp32", "engine")
    assert parse_comparand(f"{tmp_path}/a:fp32:graph") == ComparandName(tmp_path / "a:fp32", "graph")


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ("blocks", r"not of one network: block 'layer1\.3' is in .*blocks\.onnx.* alone"),
        ("classes", "they have 10 and 7 classes"),
        ("size", "images of 32x32 pixels and 3 channels, .* of 64x64"),
    ],
)
def test_another_network_is_refused(
    built: Path, small: Path, tmp_path: Path, other: str, sentence: str
) -> None:
    from rescompile.graph.export import export
    from rescompile.graph.fold import fold
    from rescompile.models.random_weights import random_model
    from rescompile.models.registry import find

    name = "resnet32-cifar" if other == "blocks" else "resnet20-cifar"
    network = random_model(find(depth=None, name=name), 7 if other == "classes" else 10, seed=1)[0]
    onnx.save(fold(export(network, image_size=64 if other == "size" else 32)), tmp_path / f"{other}.onnx")
    with pytest.raises(GraphError, match=sentence):
        line_up(f"{built / 'int8'}:graph", tmp_path / f"{other}.onnx", small)


def test_engines_that_prepare_images_differently_are_refused(
    built: Path, small: Path, tmp_path: Path
) -> None:
    other = msgspec.structs.replace(read_manifest(built / "fp16").preprocess, mean=(0.5, 0.5, 0.5))
    with pytest.raises(EngineError, match=r"prepare images differently \(mean\)"):
        line_up(built / "fp16", variant(built, tmp_path / "other", preprocess=other), small)


def test_a_damaged_directory_is_refused(built: Path, small: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "fp16", tmp_path / "e")
    (tmp_path / "e/model.bin").write_bytes(b"\0" * (tmp_path / "e/model.bin").stat().st_size)
    with pytest.raises(EngineError, match=r"model\.bin was changed"):
        line_up(tmp_path / "e", None, small)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nothing", "int8"], 2, "nothing does not exist; pass an engine directory"),
        (["int8:grph", "int8"], 2, "Did you mean 'graph'?"),
        (["int8/model.onnx:graph", "int8"], 2, "does not name a part of an engine directory"),
        (["int8:fp32"], 2, "is one side; pass the other side too"),
        (["int8/model.onnx"], 2, "is one side; pass the other side too"),
        (["a" * 5000], 2, "does not exist"),
        (["int8/model.bin", "int8"], 1, "model.bin cannot be read as ONNX"),
        (["int8", "--part-db", "nan"], 2, "is not a number of decibels"),
        (["int8", "--limit", "0"], 2, "--limit"),
        (["int8", "--plot", "sqnr.pdf"], 2, "sqnr.pdf is neither .svg nor .png"),
        (["int8", "--plot", "none/sqnr.svg"], 1, "folder none does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    code: int,
    sentence: str,
    built: Path,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Say,
) -> None:
    monkeypatch.chdir(built)
    assert call("compare", *words, "--images", small / "images.npz") == code
    assert sentence in capsys.readouterr().err


def test_images_that_do_not_fit_are_refused(built: Path, tmp_path: Path, capsys: Say) -> None:
    assert call("compare", built / "int8") == 2
    assert "pass --images PATH" in capsys.readouterr().err
    tiny = np.zeros((2, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "many.npz", images=tiny, labels=np.array([0, 99]))
    assert call("compare", built / "int8", "--images", tmp_path / "many.npz") == 1
    assert "label 99" in capsys.readouterr().err


def test_one_image_is_enough_to_look_at(built: Path, small: Path, tmp_path: Path, capsys: Say) -> None:
    Image.fromarray(np.load(small / "images.npz")["images"][0]).save(tmp_path / "one.png")
    assert call("compare", built / "int8", "--images", tmp_path / "one.png") == 0
    assert "1 image" in capsys.readouterr().out


def test_the_command_prints_a_line_a_block(
    built: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.chdir(built)
    words = ("int8:fp32", "int8:graph", "--images", small / "images.npz", "--limit", 2, "--part-db", 35)
    assert call("compare", *words, "--plot", tmp_path / "s.png") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["A  int8:fp32 (fp32 reference)", "B  int8:graph (deployable graph)"]
    assert printed[2].split() == ["block", "SQNR", "dB", "cosine", "saturated", "in", "B"]
    assert [line.split()[0] for line in printed[3:14]] == BLOCKS
    (marked,) = [line.split()[0] for line in printed if "<- diverges here" in line]
    assert f"A and B diverge at {marked}, the first block below 35 dB" in printed
    assert printed[-1] == "measured on 2 images of images.npz"
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_report_and_the_plot_follows_the_page(
    built: Path, small: Path, tmp_path: Path, capsys: Say
) -> None:
    words = (
        built / "int8",
        "--images",
        small / "images.npz",
        "--limit",
        2,
        "--plot",
        tmp_path / "s.svg",
        "--json",
    )
    assert call("compare", *words) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=ComparisonReport)
    assert len(report.comparisons) == 2
    assert json.loads(report.to_json())["comparisons"][0]["blocks"][0]["block"] == "stem"
    drawn = (tmp_path / "s.svg").read_text()
    assert drawn.startswith("<svg")
    assert "int8:graph (deployable graph) against int8:engine" in drawn
    assert "#010203" not in drawn


def test_the_commands_of_the_how_to_work(
    built: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/debug-accuracy.md"
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    commands = "".join(blocks).splitlines()
    for name, target in {"net-int8": built / "int8", "net-fp16": built / "fp16"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "val.npz").symlink_to(small / "images.npz")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        program, subcommand, *words = shlex.split(command)
        assert (program, subcommand) == ("rescompile", "compare")
        assert call("compare", *words) == 0, capsys.readouterr().err
    assert len(commands) == 4
    assert (tmp_path / "sqnr.svg").is_file()


def test_labels_that_do_not_fit_are_a_note(built: Path, small: Path, tmp_path: Path) -> None:
    with np.load(small / "images.npz") as stored:
        moved = {"images": stored["images"], "labels": (stored["labels"] + 1) % 10}
    np.savez(tmp_path / "moved.npz", **moved)
    sides = (f"{built / 'int8'}:fp32", f"{built / 'int8'}:graph")
    fit, misfit = (
        compare(*sides, images=folder / name, limit=None, progress=Silent())
        for folder, name in ((small, "images.npz"), (tmp_path, "moved.npz"))
    )
    assert not any("the fp32 network names the right class" in note for note in fit.notes)
    assert any("the fp32 network names the right class" in note for note in misfit.notes)

"""Outputs that are not classes: found or told, judged by what they decide or by their error, shown as what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import rescompile
from calibration.errors import ImageSetError
from calibration.images import open_image_set
from calibration.preprocess import CIFAR, normalize
from rescompile.accuracy.limits import check_kind
from rescompile.accuracy.verify import verify
from rescompile.building.source import Source
from rescompile.building.task import opened, with_task
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import UsageError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.presenting.html.report_page import render
from rescompile.presenting.terminal.report import summary
from rescompile.presenting.terminal.views import print_classes
from rescompile.progress import Silent
from rescompile.report import BuildReport, Limits
from rescompile.runtime.classify import classify
from rescompile.sources.modules import network_of


@pytest.fixture(scope="module")
def heads(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints ``1.pth`` and ``2.pth`` with as many outputs, and ``images.npz`` with decisions of the first."""
    folder = tmp_path_factory.mktemp("heads")
    with np.load(small / "images.npz") as stored:
        images = stored["images"]
    for count in (1, 2):
        model, _ = random_model(find(depth=None, name="resnet20-cifar"), count, seed=3)
        with torch.inference_mode():
            if count == 1:  # half of the images are positive
                model.fc.bias -= float(np.median(model(torch.from_numpy(normalize(images, CIFAR))).numpy()))
                labels = (model(torch.from_numpy(normalize(images, CIFAR)))[:, 0] > 0).numpy()
                np.savez(folder / "images.npz", images=images, labels=labels.astype(np.int64))
        torch.save(model.state_dict(), folder / f"{count}.pth")
    return folder


def config(heads: Path, count: int, output: Path, **changes: Any) -> BuildConfig:
    base = BuildConfig(
        model=ModelConfig(weights=str(heads / f"{count}.pth")),
        calibration=CalibrationConfig(images=heads / "images.npz", effort="fast"),
        validation_set=heads / "images.npz",
        backend="onnxruntime",
        fp16_blocks="none",
        output=output,
    )
    if changes.get("precision") == "fp32":
        base = replace(base, precision="fp32", calibration=CalibrationConfig(), fp16_blocks=None)
    return replace(base, **changes)


def shown(report: BuildReport) -> str:
    return "\n".join(line.plain for line in summary(report)) + render(report)


def test_one_logit_is_judged_by_its_sign(heads: Path, tmp_path: Path) -> None:
    report = rescompile.build(config(heads, 1, tmp_path / "e", limits=Limits(min_agreement=0.5)))
    assert (report.task, report.task_reason, report.top1_reference) == (
        "binary",
        "its head has one output",
        1.0,
    )
    with np.load(heads / "images.npz") as stored:
        images, labels = normalize(stored["images"], CIFAR), stored["labels"]
    with rescompile.load(tmp_path / "e") as engine:
        yes = engine(images)[:, 0] > 0
        assert engine.manifest.outputs[0].labels == ("no", "yes")
        decisions = dict(engine.classify(np.zeros((32, 32, 3), np.uint8)))
        logit = float(engine(normalize(np.zeros((1, 32, 32, 3), np.uint8), CIFAR))[0, 0])
    assert report.top1_agreement == report.top1_engine == (yes == labels).mean()
    assert decisions["yes"] == pytest.approx(1 / (1 + np.exp(-logit)))
    assert decisions["no"] == pytest.approx(1 - decisions["yes"])
    assert "top-1 of" not in shown(report)
    assert "accuracy of the engine" in shown(report)


def test_a_changed_decision_of_one_logit_fails_a_strict_limit(heads: Path, tmp_path: Path) -> None:
    """Softmax and argmax of one logit would agree always."""
    rescompile.build(config(heads, 1, tmp_path / "e", precision="fp32"))
    graph = onnx.load(tmp_path / "e/reference.onnx")
    bias = next(each for each in graph.graph.initializer if each.name == "fc.bias")
    moved = onnx.numpy_helper.to_array(bias) + np.float32(0.3)
    bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
    onnx.save(graph, tmp_path / "moved.onnx")
    report = verify(
        tmp_path / "e", validation_set=heads / "images.npz", validation_images=None,
        limits=Limits(min_agreement=0.999), reference=tmp_path / "moved.onnx", skip_unreadable=False,
        progress=Silent(),
    )  # fmt: skip
    assert report.top1_agreement is not None
    assert 0.3 < report.top1_agreement < 0.999
    assert report.task == "binary"
    assert not report.passed
    assert {(flip.reference, flip.engine) for flip in report.flips} == {("yes", "no")}


def test_values_are_judged_by_their_error_and_printed_as_numbers(
    heads: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = rescompile.build(
        config(heads, 2, tmp_path / "e", task="values", limits=Limits(max_relative_rms=0.9))
    )
    assert report.passed
    assert (report.top1_agreement, report.top1_reference, report.flips) == (None, None, ())
    assert [check.name for check in report.checks] == ["finite outputs", "relative RMS"]
    page = shown(report)
    assert "top-1" not in page
    assert "agreement" not in page
    assert "logit" not in page
    assert any("labels of images.npz are not used" in note for note in report.notes)
    photo = tmp_path / "photo.png"
    from PIL import Image

    Image.new("RGB", (32, 32), (20, 120, 200)).save(photo)
    (answer,) = classify(tmp_path / "e", [photo], top=5)
    with rescompile.load(tmp_path / "e") as engine:
        expected = engine(engine.preprocess(photo))[0]
        with pytest.raises(UsageError, match="returns values, not classes"):
            engine.classify(photo)
    assert [(each.name, each.value) for each in answer.predictions] == [
        ("0", float(expected[0])),
        ("1", float(expected[1])),
    ]
    paths = [photo, *(tmp_path / f"{index}.png" for index in range(9))]
    for shade, path in enumerate(paths):
        Image.new("RGB", (32, 32), (25 * shade, 120, 200)).save(path)
    together = classify(tmp_path / "e", paths, top=5)
    assert [each.file for each in together] == [str(path) for path in paths]
    (alone,) = classify(tmp_path / "e", paths[3:4], top=5)
    # a batch of several may be summed in another order
    assert [each.value for each in together[3].predictions] == pytest.approx(
        [each.value for each in alone.predictions], rel=1e-5
    )
    paths[5].write_bytes(b"no image")
    with pytest.raises(ImageSetError, match=r"4\.png cannot be read"):
        classify(tmp_path / "e", paths, top=5)
    left_out: list[Exception] = []
    rest = classify(tmp_path / "e", [*paths, paths[0]], top=5, skip=left_out.append)
    assert [each.file for each in rest] == [str(path) for path in [*paths[:5], *paths[6:], paths[0]]]
    assert rest[5].predictions == together[6].predictions
    assert len(left_out) == 1
    with pytest.raises(ImageSetError, match="not one of 2 photographs can be read"):
        classify(tmp_path / "e", [paths[5]] * 2, top=5, skip=left_out.append)
    print_classes((answer,))
    printed = capsys.readouterr().out
    assert f"{expected[0]:.6g}" in printed
    assert "%" not in printed


def test_values_may_have_names(heads: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("x\ny\n")
    model = ModelConfig(weights=str(heads / "2.pth"), classes=tmp_path / "names.txt")
    rescompile.build(config(heads, 2, tmp_path / "e", model=model, precision="fp32", task="values"))
    with rescompile.load(tmp_path / "e") as engine:
        assert engine.manifest.outputs[0].labels == ("x", "y")


def test_labels_of_their_own_agree_where_one_of_both_sides_gives_them(heads: Path, tmp_path: Path) -> None:
    report = rescompile.build(
        config(heads, 2, tmp_path / "e", task="multilabel", limits=Limits(max_relative_rms=0.9))
    )
    batch = next(open_image_set(heads / "images.npz").batches(CIFAR, 24)).images
    images = normalize(batch, CIFAR)
    from rescompile.backends.onnxruntime import reference_session

    expected = reference_session(tmp_path / "e/reference.onnx", optimize=True)(images) > 0
    with rescompile.load(tmp_path / "e") as engine:
        found = engine(images) > 0
        probabilities = [probability for _, probability in engine.classify(batch[0])]
    assert report.top1_agreement == pytest.approx((expected & found).sum() / max(1, (expected | found).sum()))
    changed = np.flatnonzero((expected != found).any(axis=1))
    assert [flip.image for flip in report.flips] == [f"images[{index}]" for index in changed]
    assert probabilities == sorted(probabilities, reverse=True)


def test_two_outputs_without_names_or_labels_say_that_classes_were_guessed(
    heads: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bare.npz", images=np.load(heads / "images.npz")["images"])
    asked = config(heads, 2, tmp_path / "e", precision="fp32", validation_set=tmp_path / "bare.npz")
    report = rescompile.build(asked)
    assert any(
        "judged as classes, because nothing says" in note and "--task values" in note for note in report.notes
    )
    told = rescompile.build(replace(asked, task="classes", output=tmp_path / "f"))
    assert not any("judged as classes" in note for note in told.notes)
    assert told.task_reason == "as --task says"


@pytest.mark.parametrize(
    ("count", "task", "limits", "words"),
    [
        (2, "binary", None, "--task binary needs a network of one output, and this one has 2"),
        (1, "classes", None, "--task classes needs two outputs or more"),
        (
            2,
            "values",
            Limits(min_agreement=0.9),
            "--min-agreement compares classes.*pass --max-relative-rms",
        ),
        (2, "values", Limits(min_top1=0.9), "--min-top1 needs outputs that name one class"),
        (2, "multilabel", Limits(max_top1_drop=0.9), "--max-top1-drop needs outputs.*pass --min-agreement"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_before_the_build(
    heads: Path, tmp_path: Path, count: int, task: Any, limits: Limits | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        rescompile.build(config(heads, count, tmp_path / "e", task=task, limits=limits))
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("last", "shape", "kind"),
    [
        (["GlobalAveragePool", "Flatten"], ["N", 8], "features"),
        (["Relu"], ["N", 8, 4, 4], "features"),
        (["GlobalAveragePool", "Flatten", "Exp"], ["N", 8], "features"),
        (["Flatten"], ["N", 128], "classes"),
        (["Flatten", "Sigmoid"], ["N", 128], "multilabel"),
    ],
)
def test_the_head_tells_the_task(
    small_source: Source, heads: Path, last: list[str], shape: list[Any], kind: str, tmp_path: Path
) -> None:
    names = ["conv", *(f"t{index}" for index in range(len(last)))]
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["conv"], name="conv"),
        *(helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(last)),
    ]
    graph = helper.make_graph(
        nodes, "head",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape)],
    )  # fmt: skip
    source = replace(small_source, graph=helper.make_model(graph), class_count=8)
    asked = config(heads, 2, tmp_path / "e")
    assert with_task(source, asked).kind == kind


def test_a_configuration_says_the_task_unless_the_user_does(small_source: Source) -> None:
    told = replace(small_source, told_kind=("multilabel", "as config.json says"))
    config = BuildConfig(model=ModelConfig(model="resnet20-cifar"), precision="fp16")
    found = with_task(told, config)
    assert (found.kind, found.kind_reason) == ("multilabel", "as config.json says")
    assert with_task(told, replace(config, task="values")).kind == "values"


def test_each_of_several_outputs_is_judged(small: Path, small_source: Source, tmp_path: Path) -> None:
    graph = onnx.ModelProto()
    graph.CopyFrom(small_source.graph)
    graph.graph.output.append(helper.make_tensor_value_info("flatten", TensorProto.FLOAT, ["N", 64]))
    onnx.save(graph, tmp_path / "two.onnx")
    asked = BuildConfig(
        model=ModelConfig(onnx=tmp_path / "two.onnx"),
        calibration=CalibrationConfig(images=small / "images.npz", effort="fast"),
        validation_set=small / "images.npz",
        limits=Limits(max_relative_rms=0.5),
        backend="openvino",
        output=tmp_path / "e",
    )
    report = rescompile.build(asked)
    assert report.passed
    with rescompile.load(tmp_path / "e") as engine:
        first, second = engine.manifest.outputs
        checked = [check.name for check in report.checks]
        assert checked[-2:] == [f"finite outputs of {second.name}", f"relative RMS of {second.name}"]
        assert (first.kind, second.kind, second.shape[1:], second.labels) == (
            "classes",
            "features",
            (64,),
            (),
        )
        answer = engine(np.zeros((2, 3, 32, 32), np.float32))
        assert {name: values.shape for name, values in answer.items()} == {
            first.name: (2, 10),
            second.name: (2, 64),
        }
    again = verify(
        tmp_path / "e", validation_set=small / "images.npz", validation_images=None,
        limits=Limits(max_relative_rms=1e-6), reference=None, skip_unreadable=False, progress=Silent(),
    )  # fmt: skip
    failed = [check.name for check in again.checks if not check.passed]
    assert failed == ["relative RMS", f"relative RMS of {second.name}"]


def squeezed(tmp_path: Path, names: tuple[str, ...] | None) -> Source:
    """A classifier that ends in a ReLU and a pool, as SqueezeNet's."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    config = BuildConfig(
        model=ModelConfig(network=network_of(body, size=(8, 8)), classes=names), output=tmp_path / "e"
    )
    return opened(config, Silent())[0]


def test_a_pool_behind_the_classifier_is_told_from_a_backbone_by_names_of_classes(tmp_path: Path) -> None:
    found = squeezed(tmp_path, ("a", "b", "c", "d", "e"))
    assert (found.kind, found.kind_reason) == ("classes", "its 5 outputs have names of classes")
    found = squeezed(tmp_path, None)
    assert (found.kind, found.kind_reason) == (
        "features",
        "nothing behind its last pool or ReLU is a classifier",
    )
    with pytest.raises(UsageError, match=r"instead, or --task classes if they are classes$"):
        check_kind(Limits(min_agreement=0.9), found.kind)

"""Damage by block: what the graph with that block alone in INT8 gives, whatever the batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from calibration.network import Network
from rescompile.accuracy.sensitivity import BATCH, SensitivityReport, expected_damage, measure_damage, ranked
from rescompile.building.opening import open_source
from rescompile.config import ModelConfig
from rescompile.graph.quantize import quantize
from rescompile.graph.restore import restore
from rescompile.graph.shared.topology import block_outputs, quantized_tensors
from rescompile.metrics import relative_rms
from rescompile.presenting.terminal.sensitivity import lines
from rescompile.progress import Silent
from rescompile.report import BlockDamage
from tests.commands import call
from tests.graph.conftest import folded, images, int8, run
from tests.graph.described_variants import images as variant_images
from tests.graph.described_variants import opened, quantized
from tests.graph.variant_blocks import Residual
from tests.graph.variants import exported, fitted, network

Say = pytest.CaptureFixture[str]


def logits(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of the graph as it is written, by PyTorch; ONNX Runtime would round a few activations otherwise."""
    network, parts = Network(model), [torch.from_numpy(x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    with torch.inference_mode():
        return torch.cat([network.run(part) for part in parts]).numpy()


@pytest.mark.parametrize(("name", "shortcut"), [("resnet8-cifar", "A"), ("resnet18", None)])
def test_the_damage_of_a_block_is_that_of_the_graph_with_all_others_in_float(
    name: str, shortcut: str | None
) -> None:
    exact, rounded, x = folded(name, shortcut), int8(name, shortcut), images(name, BATCH + 1)
    found = measure_damage(exact, rounded, list(x))
    expected, blocks = logits(exact, x), list(block_outputs(exact))
    assert [entry.block for entry in found.blocks] == blocks
    for entry in [*found.blocks[:2], *found.blocks[-2:]]:
        alone = restore(rounded, exact, [block for block in blocks if block != entry.block])
        assert entry.relative_rms == pytest.approx(relative_rms(expected, logits(alone, x)), rel=1e-3)
        assert entry.relative_rms > 0
    assert found.together == pytest.approx(relative_rms(expected, logits(rounded, x)), rel=1e-3)


@pytest.mark.parametrize(
    "name",
    ["se", "pre-activation", "two-heads", "densenet", "unet", "backbone", "ensemble", "option-a", "shuffle"],
)
def test_the_damage_is_that_of_the_restored_graph_for_every_family(name: str, tmp_path: Path) -> None:
    """Gates, concatenations, several outputs and blocks that do not stand in a chain."""
    source = opened(name, tmp_path)
    exact, rounded, x = source.graph, quantized(name, tmp_path), variant_images(name)
    outputs = [output.name for output in exact.graph.output]
    expected, blocks = run(exact, x, outputs), list(block_outputs(exact))
    for entry in measure_damage(exact, rounded, list(x)).blocks:
        found = run(restore(rounded, exact, [each for each in blocks if each != entry.block]), x, outputs)
        errors = [relative_rms(expected[output], found[output]) for output in outputs]
        # ONNX Runtime rounds a few ties the other way
        assert entry.relative_rms == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.05, abs=1e-4)


def test_progress_counts_the_blocks_of_all_images() -> None:
    steps: list[tuple[int, int]] = []
    x = list(images("resnet8-cifar", BATCH + 1))
    measure_damage(
        folded("resnet8-cifar"), int8("resnet8-cifar"), x, progress=lambda *step: steps.append(step)
    )
    total = len(x) * len(block_outputs(folded("resnet8-cifar")))
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_a_network_of_one_float_output_is_ranked_too(tmp_path: Path) -> None:
    """The classifier of one logit stays in floating point, so no quantizer stands in front of it."""
    torch.manual_seed(0)
    module = fitted(network(Residual(16, 32, 2), head=torch.nn.Linear(32, 1)))
    onnx.save(exported(module, (1, 3, 16, 16)), tmp_path / "one.onnx")
    source = open_source(ModelConfig(onnx=tmp_path / "one.onnx"), Silent())
    scales = dict.fromkeys(quantized_tensors(source.graph), 0.05)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    found = measure_damage(source.graph, quantize(source.graph, scales), list(x)).blocks
    assert {entry.block: entry.relative_rms > 0 for entry in found} == {
        "stem": True, "layer1.0": True, "fc": False,
    }  # fmt: skip


def test_a_network_whose_logits_are_zero_has_no_damage_in_infinity() -> None:
    def dead(model: onnx.ModelProto) -> onnx.ModelProto:
        mine = onnx.ModelProto()
        mine.CopyFrom(model)
        for entry in mine.graph.initializer:
            if entry.name.startswith("fc.") and not entry.name.endswith(("scale", "zero_point")):
                entry.CopyFrom(
                    onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(entry), entry.name)
                )
        return mine

    found = measure_damage(
        dead(folded("resnet8-cifar")), dead(int8("resnet8-cifar")), list(images("resnet8-cifar"))
    )
    assert {entry.relative_rms for entry in found.blocks} == {0.0}


def test_the_ranking_starts_with_the_most_damage_and_keeps_the_order_of_equals() -> None:
    damages = [BlockDamage(*pair) for pair in (("a", 0.1), ("b", 0.3), ("c", 0.1), ("d", 0.2))]
    assert ranked(damages) == ("b", "d", "a", "c")


def test_the_table_names_rank_damage_and_share() -> None:
    damages = (BlockDamage("stem", 0.03), BlockDamage("fc", 0.04))
    report = SensitivityReport(
        model="net", images=2, image_source="photos", together=0.05, blocks=damages, ranking=ranked(damages),
        notes=("the weights are random",),
    )  # fmt: skip
    assert lines(report) == [
        "rank  block  relative RMS of the logits   share",
        "   1  fc                        0.04000  64.0 %",
        "   2  stem                      0.03000  36.0 %",
        "all blocks in INT8: 0.05000",
        "net, each block alone in INT8, on 2 calibration images of photos",
        "note: the weights are random",
    ]


def test_expectations_stand_beside_what_was_measured() -> None:
    damages = (BlockDamage("stem", 0.03), BlockDamage("fc", 0.04))
    report = SensitivityReport(
        model="net", images=2, image_source="photos", together=0.05, blocks=damages, ranking=ranked(damages),
        expected={"stem": 0.02, "fc": 0.05},
    )  # fmt: skip
    assert [line.split()[-1] for line in lines(report)[:3]] == ["activations", "0.05000", "0.02000"]


def test_a_tensor_counts_for_the_block_that_makes_it_and_those_that_convolve_it() -> None:
    graph = folded("resnet8-cifar", "A")
    errors: dict[str, float | None] = dict.fromkeys(quantized_tensors(graph), 0.0)
    found = expected_damage(
        graph, errors | {"layer1.0.relu": 0.3, "layer3.0.relu": 0.4, "layer1.0.relu1": 0.4}
    )
    assert found == pytest.approx({"stem": 0.0, "layer1.0": 0.5, "layer2.0": 0.3, "layer3.0": 0.4, "fc": 0.0})
    assert expected_damage(graph, errors | {"input": 0.1})["stem"] == pytest.approx(0.1)
    assert expected_damage(graph, errors | {"flatten": None}) == {}


def test_the_command_prints_the_ranking_draws_it_and_gives_json(
    small: Path, tmp_path: Path, capsys: Say
) -> None:
    words = ("sensitivity", "--model", "resnet8-cifar", "--weights", "random",
             "--calibration-set", small / "images.npz", "--images", 2,
             "--calibration-images", 4, "--plot", tmp_path / "damage.svg")  # fmt: skip
    assert call(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["images"], len(report["blocks"])) == ("resnet8-cifar", 2, 5)
    assert np.isfinite([block["relative_rms"] for block in report["blocks"]]).all()
    assert "most sensitive: " + report["ranking"][0] in (tmp_path / "damage.svg").read_text()
    # the default effort takes gradients, so it has a model of the noise; fast has none
    assert set(report["expected"]) == {block["block"] for block in report["blocks"]}
    assert call(*words, "--effort", "fast") == 0
    printed = capsys.readouterr().out.splitlines()
    assert "activations" not in printed[0]
    assert printed[1].split()[0] == "1"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--plot", "damage.pdf"], 2, "damage.pdf is neither .svg nor .png"),
        ([], 2, "int8 needs images"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(
    small: Path, capsys: Say, words: list[str], code: int, said: str
) -> None:
    assert call("sensitivity", "--weights", small / "net.pth", *words) == code
    assert said in capsys.readouterr().err

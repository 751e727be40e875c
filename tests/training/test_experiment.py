"""``rescompile experiment``: the set, resuming, the figures of the page, and the papers' effect."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rescompile.errors import TrainingError, UsageError
from rescompile.models.registry import find, with_options
from rescompile.presenting.terminal.training import TerminalExperiment, print_experiment
from rescompile.training import experiment
from rescompile.training.experiment import ExperimentConfig, run_experiment
from rescompile.training.recipe import find_recipe
from rescompile.training_report import ExperimentReport


def run(output: Path, *changes: str, **options: object) -> ExperimentReport:
    fields = {"name": "degradation", "networks": ("plain8-cifar", "resnet8-cifar:B"), "seeds": 2, **options}
    recipe = find_recipe("digits", ["steps=10", "batch_size=16", *changes])
    config = ExperimentConfig(data="digits", output=output, recipe=recipe, **fields)  # type: ignore[arg-type]
    return run_experiment(config, TerminalExperiment())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentReport]:
    """A folder with the ``set`` of two networks and two seeds, one after the other, and its report."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("experiment")
    return folder, run(folder / "set")


def test_the_files_and_figures(
    made: tuple[Path, ExperimentReport], capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path, report = made
    stored = json.loads((tmp_path / "set/experiment.json").read_text())
    plain, residual = stored["networks"]
    assert (plain["name"], plain["depth"], plain["plain"], residual["plain"]) == (
        "plain8-cifar",
        8,
        True,
        False,
    )
    for network in stored["networks"]:
        lines = [
            json.loads(
                (tmp_path / f"set/{network['name'].replace(':', '-')}-seed{seed}/history.jsonl").read_text()
            )
            for seed in (0, 1)
        ]
        assert network["test_error"] == pytest.approx(np.mean([line["test_error"] for line in lines]))
        assert network["train_errors"] == [line["train_error"] for line in lines]
        assert len(network["responses"]) == 7
        assert min(network["responses"]) > 0
    page = (tmp_path / "set/report.html").read_text()
    assert "plain8-cifar" in page
    assert page.count("<svg") == 3
    assert "CIFAR-10" not in page
    assert all(network.paper_error is None for network in report.networks)
    print_experiment(report, tmp_path / "set")
    said = capsys.readouterr().out
    assert "lowest test error" in said
    assert "paper" not in said
    with pytest.raises(TrainingError, match="pass --resume"):
        run(tmp_path / "set")
    # all is there, so nothing is trained again
    again = run(tmp_path / "set", resume=True)
    assert [network.histories for network in again.networks] == [
        network.histories for network in report.networks
    ]


@pytest.mark.slow
def test_processes_give_the_same(made: tuple[Path, ExperimentReport], tmp_path: Path) -> None:
    two = run(tmp_path / "two", jobs=2, seeds=1)
    assert [n.train_errors for n in two.networks] == [
        pytest.approx(n.train_errors[:1]) for n in made[1].networks
    ]


@pytest.mark.slow
def test_plain_networks_get_worse_with_depth_and_residual_ones_do_not(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    networks = ("plain8-cifar", "plain32-cifar", "resnet8-cifar", "resnet32-cifar")
    report = run(tmp_path / "set", "steps=60", "batch_size=32", networks=networks, seeds=1)
    errors = {network.name: network.train_error for network in report.networks}
    assert errors["plain32-cifar"] > errors["plain8-cifar"] + 15
    assert errors["plain32-cifar"] > errors["resnet32-cifar"] + 15


def test_every_set_is_known_to_the_registry() -> None:
    for name in ("degradation", "depth", "shortcut", "preactivation"):
        for data in ("digits", "cifar-10-batches-bin"):
            config = ExperimentConfig(name=name, data=data, output=Path("x"), recipe=find_recipe("digits"))
            names = experiment.networks_of(config)
            for each in names:
                network, _, shortcut = each.partition(":")
                with_options(find(depth=None, name=network), shortcut=shortcut or None)  # type: ignore[arg-type]
            assert len(names) > 2


def test_unknown_experiments() -> None:
    with pytest.raises(UsageError, match="Did you mean 'degradation'"):
        ExperimentConfig(name="degredation", data="digits", output=Path("x"), recipe=find_recipe("digits"))
    with pytest.raises(UsageError, match="--seeds 1"):
        ExperimentConfig(name="depth", data="digits", output=Path("x"), recipe=find_recipe("digits"), seeds=0)


def test_the_papers_figures_stand_beside_other_images_than_the_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "train.npz",
        images=draw.integers(0, 256, (40, 8, 8, 3), np.uint8),
        labels=np.arange(40) % 10,
    )
    config = ExperimentConfig(
        name="depth", data=str(tmp_path / "train.npz"), output=tmp_path / "set", networks=("resnet20-cifar",),
        recipe=find_recipe("digits", ["steps=2", "batch_size=16"]),
    )  # fmt: skip
    report = run_experiment(config, TerminalExperiment())
    assert report.networks[0].paper_error == 8.75
    assert "paper, all of CIFAR-10" in (tmp_path / "set/report.html").read_text()
    print_experiment(report, tmp_path / "set")
    assert "8.75 %" in capsys.readouterr().out

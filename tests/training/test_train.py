"""``rescompile train``: files, resuming after a kill, several processes, fused blocks, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rescompile
from fused_kernels.launch import implementation
from rescompile.errors import DataError, OutputError, TrainingError, UsageError
from rescompile.files import one_file
from rescompile.sources.trained import read_trained
from rescompile.training import loop, run_folder
from rescompile.training.processes import Process
from rescompile.training.recipe import find_recipe
from rescompile.training.train import TrainConfig, train
from rescompile.training_report import TrainingReport
from tests.commands import sent, succeeds

ROOT = Path(__file__).parent.parent.parent
SMALL = ("batch_size=16", "steps=12", "augmentation=pad-crop", "padding=1")
COMMAND = [
    *(sys.executable, "-m", "rescompile", "train", "--model", "resnet8-cifar"),
    *("--steps", "24", "--batch-size", "16", "--fuse", "off"),
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 noisy images of 8 pixels, in 4 classes that a network can tell apart."""
    draw = np.random.default_rng(0)
    labels = np.arange(64) % 4
    pixels = draw.integers(0, 120, (64, 8, 8, 3)) + (40 * labels)[:, None, None, None]
    path = tmp_path_factory.mktemp("images") / "train.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return path


def run(images: Path, output: Path, *changes: str, **options: object) -> TrainingReport:
    recipe = find_recipe("digits", [*SMALL, *changes])
    named = {"model": "resnet8-cifar", **options}
    return train(TrainConfig(data=str(images), output=output, recipe=recipe, **named))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing disturbed, read-only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(images, folder)
    return folder


def same(one: Path, two: Path) -> bool:
    left, right = (load_file(path / "last.safetensors") for path in (one, two))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_files_of_a_run(images: Path, tmp_path: Path) -> None:
    report = run(images, tmp_path / "run", "steps=40")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "run.json", "history.jsonl", "checkpoint.safetensors", "last.safetensors", "best.safetensors",
        "report.html", "curves.png", "calibration.npz",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert (
        [line["step"] for line in lines] == [record.step for record in report.history] == [*range(4, 41, 4)]
    )
    assert report.last.train_error < 50 < lines[0]["train_error"]
    trained = read_trained(tmp_path / "run/best.safetensors")
    assert trained is not None
    assert (trained.model, trained.step, trained.calibration) == (
        "resnet8-cifar",
        report.best_step,
        "calibration.npz",
    )
    assert trained.test_error == min(line["test_error"] for line in lines)


def test_a_build_of_the_weights_needs_nothing_more(images: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    report = run(images, tmp_path / "run", "steps=40", classes=tmp_path / "names.txt")
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    built = rescompile.build(
        tmp_path / "moved/best.safetensors", output=tmp_path / "engine", validation=images, backend="openvino"
    )
    assert built.calibration is not None
    assert built.calibration.source == "calibration.npz"
    engine = rescompile.load(tmp_path / "engine")
    trained = read_trained(tmp_path / "run/best.safetensors")
    assert trained is not None
    assert engine.manifest.preprocess == trained.preprocess
    assert trained.preprocess.mean_image
    assert engine.manifest.classes == ("a", "b", "c", "d")
    assert built.top1_reference is not None
    assert built.top1_reference > 0.4
    assert report.best.test_error < 60


def test_resuming_gives_the_same_bits(images: Path, tmp_path: Path) -> None:
    changes = (
        "average=0.9",
        "warmup=0.2",
        "schedule=cosine",
        "weight_decay=0.01",
        "decay_norms_and_biases=false",
    )
    run(images, tmp_path / "whole", *changes)
    run(images, tmp_path / "parts", *changes)
    assert same(tmp_path / "whole", tmp_path / "parts")
    folder = run_folder.RunFolder(tmp_path / "stopped")
    stop_after(images, folder.path, 8, *changes)
    # a process that ended after its history and before its checkpoint leaves a line too many
    extra = (tmp_path / "whole/history.jsonl").read_text().splitlines()[-1]
    with (folder.path / "history.jsonl").open("a") as file:
        file.write(extra + "\n" + extra[:9])
    report = run(images, folder.path, *changes, resume=True)
    assert [record.step for record in report.history] == [4, 8, 12]
    assert same(tmp_path / "whole", folder.path)


def stop_after(images: Path, output: Path, step: int, *changes: str, **options: object) -> None:
    """A training that ends when the checkpoint of ``step`` is written."""
    original = run_folder.RunFolder.save

    def save(self: run_folder.RunFolder, tensors: object, progressed: run_folder.Progressed) -> None:
        original(self, tensors, progressed)  # type: ignore[arg-type]
        if progressed.step >= step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(images, output, *changes, **options)


def test_adam_and_half_precision_resume_too(images: Path, tmp_path: Path) -> None:
    for name, precision in (("bf16", "bf16"), ("fp16", "fp16")):
        changes = ("optimizer=adam", "learning_rate=0.001")
        run(images, tmp_path / name, *changes, precision=precision)
        stop_after(images, tmp_path / f"{name}-stopped", 4, *changes, precision=precision)
        run(images, tmp_path / f"{name}-stopped", *changes, precision=precision, resume=True)
        assert same(tmp_path / name, tmp_path / f"{name}-stopped")


KILLS = int(os.environ.get("RESCOMPILE_KILLS", "1"))


@pytest.mark.slow
def test_killed_at_any_moment(images: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "--recipe", "digits", "--data", str(images)]
    started = time.monotonic()
    subprocess.run(
        [*command, "--output", tmp_path / "whole"], env=ENVIRONMENT, check=True, capture_output=True
    )
    seconds = time.monotonic() - started
    draw = random.Random(int(os.environ.get("RESCOMPILE_SEED", "0")))
    kills = 0
    while kills < KILLS:
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--output", tmp_path / "killed", "--resume"],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(draw.uniform(0.4, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
            assert same(tmp_path / "whole", tmp_path / "killed")
            seconds = min(seconds, time.monotonic() - started)  # the machine was busier before
            shutil.rmtree(tmp_path / "killed")
    final = [*command, "--output", tmp_path / "killed", "--resume"]
    subprocess.run(final, env=ENVIRONMENT, check=True, capture_output=True)
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert {path.name for path in (tmp_path / "killed").iterdir() if not path.name.startswith(".")} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.slow
def test_two_processes_are_one(images: Path, tmp_path: Path) -> None:
    arguments = [*COMMAND[3:], "--recipe", "digits", "--data", str(images), "--sync-bn", "--steps", "6"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    double = [*torchrun, "-m", "rescompile", *arguments, "--output", tmp_path / "two"]
    succeeds(*arguments, "--output", tmp_path / "one")
    subprocess.run(double, env=ENVIRONMENT, check=True, capture_output=True)
    left, right = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name, tensor in left.items():
        torch.testing.assert_close(tensor.float(), right[name].float(), rtol=2e-3, atol=2e-4, msg=name)
    losses = [
        [
            json.loads(line)["train_loss"]
            for line in (tmp_path / name / "history.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_processes_test_the_averaged_statistics_of_the_first(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process averages running statistics of its own, and the first one's weights are kept."""
    followed: list[nn.Module] = []
    monkeypatch.setattr(Process, "follow_first", lambda _, network: followed.append(network))
    run(images, tmp_path / "run", "steps=2", "average=0.5")
    kept = load_file(tmp_path / "run/last.safetensors")
    assert kept.keys() == followed[-1].state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in followed[-1].state_dict().items())


def compare_fused(images: Path, folder: Path, how: str, *changes: str) -> None:
    """Losses of plain and of fused blocks, step by step, and the names of their weights."""
    reports = []
    for fuse in ("off", "on"):
        with implementation(how):
            reports.append(run(images, folder / fuse, *changes, fuse=fuse))
    losses = [[record.train_loss for record in report.history] for report in reports]
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-4)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # rounding grows from step to step
    assert "3 of 3 residual blocks are fused" in reports[1].notes[-1]
    left, right = (load_file(folder / fuse / "last.safetensors") for fuse in ("off", "on"))
    assert left.keys() == right.keys()


def test_fused_blocks_have_the_same_losses(images: Path, tmp_path: Path) -> None:
    compare_fused(images, tmp_path, "reference", "steps=50", "learning_rate=0.02")


def test_a_cpu_trains_unfused(images: Path, tmp_path: Path) -> None:
    assert (
        run(images, tmp_path / "auto", "steps=2").notes
        == run(images, tmp_path / "off", "steps=2", fuse="off").notes
    )
    assert json.loads((tmp_path / "auto/run.json").read_text())["fused"] is False


def test_a_short_rest_belongs_to_the_last_epoch(images: Path, tmp_path: Path) -> None:
    assert [record.step for record in run(images, tmp_path / "run", "steps=9").history] == [4, 9]


def test_going_on_from_weights(images: Path, tmp_path: Path) -> None:
    first = run(images, tmp_path / "first", "steps=40")
    again = run(
        images, tmp_path / "again", "learning_rate=0.001", "normalization=imagenet",
        weights=tmp_path / "first/best.safetensors", model=None,
    )  # fmt: skip
    assert again.history[0].train_error < first.history[0].train_error - 20
    one, two = (read_trained(tmp_path / name / "best.safetensors") for name in ("first", "again"))
    assert one is not None
    assert two is not None
    assert one.preprocess == two.preprocess  # of the weights, and not of the recipe


def test_a_new_head_for_other_classes(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "first")
    labels = np.arange(64) % 3
    with np.load(images) as archive:
        np.savez(tmp_path / "three.npz", images=archive["images"], labels=labels)
    options = {"weights": tmp_path / "first/last.safetensors", "model": None}
    with pytest.raises(UsageError, match=r"has 4 classes, and the images have 3: .*--new-head"):
        run(tmp_path / "three.npz", tmp_path / "second", **options)
    run(tmp_path / "three.npz", tmp_path / "second", new_head=True, **options)
    assert load_file(tmp_path / "second/last.safetensors")["fc.weight"].shape == (3, 64)


def test_a_slow_start_ends_when_the_network_learns(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SLOW_UNTIL", 40.0)  # four classes are guessed with an error of 75 %
    report = run(images, tmp_path / "run", "steps=60", "slow_start_depth=8", "milestones=[]")
    rates = [record.learning_rate for record in report.history]
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.1)
    errors = [record.train_error for record in report.history]
    ended = rates.index(pytest.approx(0.1))
    assert errors[ended] < 40 <= min(errors[:ended])


def test_a_loss_that_is_not_a_number(images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step \d+, with a learning rate of 1e\+30"):
        run(images, tmp_path / "run", "learning_rate=1e30")


def test_a_loss_that_is_no_longer_a_number_leaves_the_last_checkpoint(images: Path, tmp_path: Path) -> None:
    changes = ("schedule=steps", "milestones=[0.5]", "factor=1e30")
    with pytest.raises(TrainingError) as stop:
        run(images, tmp_path / "run", *changes)
    said = str(stop.value)
    assert re.search(r"at step [78], with a learning rate of 1e\+29", said)
    assert f"the last good checkpoint is {tmp_path / 'run/checkpoint.safetensors'}, of step 4" in said
    found = run_folder.RunFolder(tmp_path / "run").load()
    assert found is not None
    assert found[1].step == 4
    assert all(torch.isfinite(tensor).all() for tensor in found[0].values())


@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_a_disk_that_fills_up_leaves_the_files_before(
    files: int, images: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(images, tmp_path / "run", 4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    left = [files]

    def fsync(handle: int) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1

    with monkeypatch.context() as patch:
        patch.setattr(one_file.os, "fsync", fsync)
        with pytest.raises(
            OutputError, match=r"^disk full at .*: [\d,]+ bytes free, [\d,]+ bytes needed; make room"
        ):
            run(images, tmp_path / "run", resume=True)
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after.keys() == before.keys()  # nothing half-written
    assert after["checkpoint.safetensors"] == before["checkpoint.safetensors"]
    run(images, tmp_path / "run", resume=True)
    assert same(whole, tmp_path / "run")


def test_another_recipe_does_not_resume(images: Path, tmp_path: Path) -> None:
    stop_after(images, tmp_path / "run", 4)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.1, and this command asks for 0\.2"):
        run(images, tmp_path / "run", "learning_rate=0.2", resume=True)
    with pytest.raises(TrainingError, match="seed 0, and this command asks for 1"):
        run(images, tmp_path / "run", resume=True, seed=1)
    with pytest.raises(OutputError, match="not empty: pass --resume"):
        run(images, tmp_path / "run")
    (tmp_path / "run/checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="is damaged"):
        run(images, tmp_path / "run", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("x")
    with pytest.raises(TrainingError, match="holds no training"):
        run(images, tmp_path / "other", resume=True)


def test_a_full_disk(images: Path, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); import signal; " \
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from rescompile.cli.app import main; main()"  # fmt: skip
    command = [sys.executable, "-c", limit, *COMMAND[3:], "--recipe", "digits", "--data", str(images)]
    ended = subprocess.run(
        [*command, "--output", tmp_path / "run"], env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "error: the file size limit of this process is reached at "
    )


def test_names_of_another_number_of_classes(images: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(UsageError, match="names 2 classes, the network has 4"):
        run(images, tmp_path / "run", classes=tmp_path / "names.txt")


def test_missing_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "none.npz", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, shown, _ = sent("train", "--recipe", "modern", "--steps", "9", "--show-recipe")
    assert json.loads(shown)["steps"] == 9
    code, _, errors = sent("train", "--model", "resnet8-cifar")
    assert (code, "pass --data PATH" in errors) == (2, True)
    digits = ("train", "--model", "resnet8-cifar", "--data", "digits", "--steps", "2")
    _, trained, progress = sent(*digits, "--json")
    assert json.loads(trained)["model"] == "resnet8-cifar"
    assert "step 2" in progress
    assert (tmp_path / "run/test.npz").is_file()
    # in a process of its own, where a library may write what it wants
    command = [sys.executable, "-m", "rescompile", *digits, "--output", "silent", "-q"]
    quiet = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert (quiet.returncode, quiet.stderr) == (0, "")

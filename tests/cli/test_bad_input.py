"""Bad input: one clear sentence, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rescompile import load
from rescompile.manifest import read_manifest
from rescompile.report import read_report
from tests.backends.graphs import residual_net, saved
from tests.commands import call, succeeds

Answer = Callable[..., str]


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Answer:
    """Run a command that must fail with ``code``; returns the one line that it prints."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(command: str, *paths: object, code: int = 1) -> str:
        found = call(*command.split(), *paths)
        printed = capsys.readouterr()
        assert found == code, printed.err
        assert "Traceback" not in printed.err
        assert not list(work.iterdir()), "something was left behind"
        assert not printed.out
        (said,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        return said

    return run


BUILD = "build --backend openvino --output engine --weights"


def test_a_missing_checkpoint(refuses: Answer, tmp_path: Path) -> None:
    assert "no.pth does not exist" in refuses(BUILD, tmp_path / "no.pth")


def test_a_text_file_as_checkpoint(refuses: Answer, tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("these are my weights\n" * 100)
    assert "notes.pth" in refuses(BUILD, tmp_path / "notes.pth")


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickle_with_code_in_it_is_not_run(refuses: Answer, tmp_path: Path) -> None:
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"state_dict": _Bomb()}, protocol=2))
    assert "bomb.pth" in refuses(BUILD, tmp_path / "bomb.pth")


def test_the_wrong_depth_for_the_weights(refuses: Answer, small: Path) -> None:
    said = refuses(f"{BUILD} {small / 'net.pth'} --depth 50")
    assert "holds a resnet20-cifar, but resnet50 was asked" in said


def changed(small: Path, path: Path, name: str, value: float) -> Path:
    state = torch.load(small / "net.pth", weights_only=True)
    state[name].view(-1)[3] = value
    torch.save(state, path)
    return path


def test_nan_weights_are_located(refuses: Answer, small: Path, tmp_path: Path) -> None:
    weights = changed(small, tmp_path / "nan.pth", "layer2.1.conv2.weight", float("nan"))
    assert "layer2.1.conv2.weight has 1 of 9216 values NaN" in refuses(BUILD, weights)


def test_a_dead_channel_builds_with_a_positive_scale(small: Path, tmp_path: Path) -> None:
    state = torch.load(small / "net.pth", weights_only=True)
    state["layer1.0.conv1.weight"][5] = 0
    state["layer1.0.bn1.weight"][5] = state["layer1.0.bn1.bias"][5] = 0
    torch.save(state, tmp_path / "dead.pth")
    images = ("--calibration-set", small / "images.npz")
    succeeds(*BUILD.split()[:3], "--weights", tmp_path / "dead.pth", *images, "--output", tmp_path / "e",
             "--rounding", "nearest", "--max-relative-rms", "0.5")  # fmt: skip
    assert read_report(tmp_path / "e").lint.violations == ()


def test_int8_without_images_is_explained(refuses: Answer, small: Path) -> None:
    said = refuses(BUILD, small / "net.pth", code=2)
    assert "--calibration-set FOLDER" in said
    assert "resnet20-cifar with 10 classes" in said


def calibrating(small: Path, images: Path, *more: str) -> str:
    return " ".join([BUILD, str(small / "net.pth"), "--calibration-set", str(images), *more])


def test_an_empty_folder(refuses: Answer, small: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refuses(calibrating(small, tmp_path / "empty"))


def pictures(folder: Path, modes: str = "RGB RGB RGB") -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, mode in enumerate(modes.split()):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).convert(mode)
        image.save(folder / f"{index}.{'jpg' if mode == 'CMYK' else 'png'}")
    return folder


def test_one_unreadable_image_is_named_and_stops_the_build(
    refuses: Answer, small: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "pictures")
    (folder / "bad.png").write_bytes((folder / "0.png").read_bytes()[:300])
    said = refuses(calibrating(small, folder))
    assert "bad.png" in said
    assert "--skip-unreadable" in said


def test_one_unreadable_image_can_be_left_out_and_grey_and_cmyk_ones_are_converted(
    small: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "pictures", modes="L CMYK RGBA P RGB 1")
    (folder / "bad.png").write_bytes(b"no picture")
    words = calibrating(small, folder).replace("--output engine", f"--output {tmp_path / 'e'}").split()
    out = succeeds(*words, "--effort", "fast", "--skip-unreadable", "--max-relative-rms", "1")
    assert "bad.png" in out
    calibration = read_manifest(tmp_path / "e").calibration
    assert calibration is not None
    assert calibration.images == 6


def test_a_folder_of_unreadable_images_only(refuses: Answer, small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no picture")
    assert "a.png" in refuses(calibrating(small, folder))
    assert "broken" in refuses(calibrating(small, folder, "--skip-unreadable"))


def test_images_of_another_size(refuses: Answer, small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    said = refuses(f"{calibrating(small, folder)} --resize 0")
    assert "a.png" in said
    assert "20" in said


def test_a_table_of_another_checkpoint(refuses: Answer, small: Path, engine: Path, tmp_path: Path) -> None:
    weights = changed(small, tmp_path / "other.pth", "fc.bias", 0.5)
    said = refuses(f"{BUILD} {weights} --calibration", engine / "calibration.json")
    assert "checkpoint" in said


def test_an_edited_table(refuses: Answer, small: Path, engine: Path, tmp_path: Path) -> None:
    text = (engine / "calibration.json").read_text()
    (tmp_path / "t.json").write_text(text.replace('"method": "mse"', '"method": "max"', 1))
    assert "t.json was changed" in refuses(f"{BUILD} {small / 'net.pth'} --calibration", tmp_path / "t.json")
    (tmp_path / "t.json").write_text("scales")
    assert "t.json" in refuses(f"{BUILD} {small / 'net.pth'} --calibration", tmp_path / "t.json")


USAGE = {
    "build": "no network was named",
    "build --depth 42": "ResNet of depth 42",
    "build --depth 56": "--model resnet56-cifar",
    "build --model resnet5": "resnet50",
    "build --model resnet21-cifar": "6n+2",
    "build --depth 50 --model resnet50": "both name the network",
    "build --depth 50 --onnx x.onnx": "both name the network",
    "build --depth 50 --batch 8:4:1": "1 <= MIN <= OPT <= MAX",
    "build --depth 50 --batch many": "--batch many is not understood",
    "build --depth 50 --mean 1;2": "write three numbers",
    "build --depth 50 --mean 0.5,0.5": "pass one for each channel",
    "build --depth 50 --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375": (
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    ),
    "build --depth 50 --mean 104,117,123 --std 1,1,1": "--std 0.00392157,0.00392157,0.00392157 --color BGR",
    "build --depth 50 --mean nowhere.npy": "nowhere.npy does not exist",
    "build --depth 50 --crop-pct 95": "--crop-pct 95 is not between 0 and 1",
    "build --depth 50 --min-agreement 97": "it is a share",
    "build --depth 50 --max-top1-drop -1": "percentage points",
    "build --depth 50 --calibration-method fancy": "is not a calibration method",
    "build --depth 50 --calibration-set a --calibration b": "pass one of them",
    "build --depth 50 --precision fp16 --calibration-set a": "needs none",
    "build --depth 50 --calibration-images 0": "leaves no image",
    "build --depth 50 --crop 0": "side in pixels",
    "build --depth 50 --crop -5": "--crop -5 is not between 1 and",
    "build --depth 50 --crop 100000": "--crop 100000 is not between 1 and",
    "build --depth 50 --resize -1": "--resize -1 is not between 0 and",
    "build --depth 50 --seed -1": "--seed -1 is negative",
    "build --depth 50 --shortcut A": "no shortcut option A",
    "build --depth 18 --stride-on 1x1": "no 1x1 convolution",
    "build --depth 18 --weights pretrained-v2": "resnet18",
    "verify nowhere": "--validation-set",
}


@pytest.mark.parametrize("command", USAGE)
def test_usage_errors_exit_with_2(refuses: Answer, command: str) -> None:
    assert USAGE[command] in refuses(command, code=2)


def test_an_unknown_option_exits_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rescompile", "build", "--dpeth", "50"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--depth" in done.stderr


def test_targets_that_do_not_exist(refuses: Answer, small: Path) -> None:
    weights = f"--weights {small / 'net.pth'} --precision fp16 --output engine"
    assert "--target" in refuses(f"build {weights} --backend openvino --target sm_89", code=2)
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    assert "sm_99 is unknown" in refuses(f"build {weights} --backend tensorrt-rtx --target sm_99", code=2)
    assert "H100" in refuses(f"build {weights} --backend tensorrt-rtx --target sm_90", code=2)


def test_a_target_is_refused_before_anything_is_downloaded(
    refuses: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescompile.sources import pretrained

    monkeypatch.setattr(pretrained, "fetch_pretrained", None)
    assert "--target" in refuses("build --depth 101 --backend openvino --target sm_89", code=2)


def test_a_backend_that_is_not_there_names_its_extra(refuses: Answer, small: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed here")
    said = refuses(f"build --weights {small / 'net.pth'} --precision fp16 --backend tensorrt --output engine")
    assert "[tensorrt]'" in said


def test_a_top1_drop_needs_labels(refuses: Answer, small: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "flat")
    said = refuses(calibrating(small, folder, "--max-top1-drop", "1", "--validation-set", str(folder)))
    assert "labels" in said


def test_a_top1_drop_without_any_labels_is_refused_before_the_work(
    refuses: Answer, small: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "flat")
    said = refuses(calibrating(small, folder, "--max-top1-drop", "1"), code=2)
    assert "flat does not have; pass a labelled --validation-set" in said


def test_labels_beyond_the_classes(refuses: Answer, small: Path, tmp_path: Path) -> None:
    with np.load(small / "images.npz") as arrays:
        np.savez(tmp_path / "far.npz", images=arrays["images"], labels=arrays["labels"] + 5)
    said = refuses(calibrating(small, small / "images.npz", "--validation-set", str(tmp_path / "far.npz")))
    assert "far.npz: images[" in said
    assert "the network has classes 0 to 9" in said


def test_class_folders_that_are_not_the_classes(refuses: Answer, small: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    (tmp_path / "val").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / name).rename(tmp_path / "val" / name)
    said = refuses(f"{BUILD} {small / 'net.pth'} --precision fp32 --validation-set", tmp_path / "val")
    assert "2 class folders, the network has 10 classes" in said


def test_class_names_that_do_not_fit(refuses: Answer, small: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    said = refuses(f"{BUILD} {small / 'net.pth'} --precision fp32 --classes", tmp_path / "names.txt", code=2)
    assert "names 2 classes, the network has 10" in said


@pytest.fixture(scope="module")
def engine(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "engine"
    words = calibrating(small, small / "images.npz").replace("--output engine", f"--output {folder}").split()
    succeeds(*words, "--effort", "fast", "--max-relative-rms", "0.5")
    return folder


def test_a_flipped_byte_in_any_file_is_found(
    refuses: Answer, engine: Path, small: Path, tmp_path: Path
) -> None:
    for original in sorted(engine.iterdir()):
        copy = tmp_path / original.stem
        shutil.copytree(engine, copy, dirs_exist_ok=True)
        data = bytearray(original.read_bytes())
        data[len(data) // 2] ^= 1
        (copy / original.name).write_bytes(data)
        for command in ("inspect", f"verify --validation-set {small / 'images.npz'}", "run"):
            paths = (copy, small / "images.npz") if command == "run" else (copy,)
            assert original.name in refuses(command, *paths)
        shutil.rmtree(copy)


def test_a_directory_that_is_no_engine(refuses: Answer, tmp_path: Path) -> None:
    assert "does not exist" in refuses("inspect", tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    assert "no manifest.json" in refuses("inspect", tmp_path / "other")


def test_a_text_file_as_photograph(refuses: Answer, engine: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("smile")
    said = refuses("run", engine, tmp_path / "photo.jpg")
    assert "photo.jpg cannot be read" in said
    assert "--skip-unreadable" not in said  # an option of other commands
    assert "no.jpg cannot be read (No such file" in refuses("run", engine, tmp_path / "no.jpg")


def test_verifying_without_the_reference(refuses: Answer, engine: Path, small: Path, tmp_path: Path) -> None:
    said = refuses(
        f"verify {engine} --validation-set {small / 'images.npz'} --reference", tmp_path / "no.onnx"
    )
    assert "no.onnx does not exist; pass --reference" in said


def test_verifying_against_another_network(
    refuses: Answer, engine: Path, small: Path, tmp_path: Path
) -> None:
    other = saved(residual_net("fp32"), tmp_path)
    said = refuses(f"verify {engine} --validation-set {small / 'images.npz'} --reference", other)
    assert "is not a reference of this engine" in said
    assert "pass the reference.onnx of its build" in said


def test_verifying_on_no_image(refuses: Answer, engine: Path, small: Path) -> None:
    words = f"verify {engine} --validation-set {small / 'images.npz'} --validation-images 0"
    assert "--validation-images 0 leaves no image" in refuses(words, code=2)


def test_verifying_tells_the_images_that_were_left_out(engine: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    (folder / "bad.png").write_bytes(b"no picture")
    out = succeeds(
        "verify", engine, "--validation-set", folder, "--skip-unreadable", "--max-relative-rms", "1"
    )
    assert "bad.png" in out


def test_a_table_without_a_folder_to_lie_in(refuses: Answer, small: Path, tmp_path: Path) -> None:
    words = f"calibrate --weights {small / 'net.pth'} --calibration-set {small / 'images.npz'} --output"
    assert "nowhere is not a folder; make it" in refuses(words, tmp_path / "nowhere/t.json")


def test_a_file_that_is_no_onnx(refuses: Answer, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("hello")
    assert "is not a valid ONNX model" in refuses("build --precision fp32 --onnx", tmp_path / "net.onnx")
    assert "does not exist" in refuses("build --precision fp32 --onnx", tmp_path / "no.onnx")


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
from rescompile.cli.app import main
main()
"""


def test_a_disk_without_room_leaves_nothing(small: Path, tmp_path: Path) -> None:
    words = f"build --backend openvino --precision fp32 --weights {small / 'net.pth'} --output {tmp_path / 'e'}".split()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "file size limit" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, which only root can make: enough for the deployable graph, not for the engine."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_nothing(refuses: Answer, small: Path, tiny_disk: Path) -> None:
    words = calibrating(small, small / "images.npz").replace("--output engine", f"--output {tiny_disk / 'e'}")
    said = refuses(f"{words} --effort fast")
    assert "disk full" in said
    assert "bytes needed; make room" in said
    assert not list(tiny_disk.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("more", ["", "--json"])
def test_standard_output_that_takes_nothing(engine: Path, more: str) -> None:
    command = [sys.executable, "-m", "rescompile", "inspect", engine, *more.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: the output cannot be written (No space left on device)")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_stopped_leaves_no_engine_and_the_next_one_cleans_up(
    small: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = (
        calibrating(small, small / "images.npz")
        .replace("--output engine", f"--output {tmp_path / 'e'}")
        .split()
    )
    # a shell that starts the tests in the background has Ctrl-C ignored by all its children
    heeding = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('rescompile', run_name='__main__', alter_sys=True)"
    )
    build = [sys.executable, "-c", heeding, *words, "--effort", "fast", "--max-relative-rms", "0.5"]
    with subprocess.Popen(build, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as running:
        assert running.stderr is not None
        while "calibrate: started" not in running.stderr.readline():
            assert running.poll() is None
        running.send_signal(number)
        said = running.stderr.read()
    assert running.returncode != 0
    assert "Traceback" not in said
    assert said.count("error: ") == (number != signal.SIGKILL)
    assert not (tmp_path / "e").exists()
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())
        return
    succeeds(*build[3:])
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    load(tmp_path / "e").close()
